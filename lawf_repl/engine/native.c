/* One token through the layers of a plain decoder in float32 on a CPU, the product of a matrix with a vector, and the statistics of logits.

   A token reads every weight once, so its time is that of reading memory, if nothing comes between. Two things do, elsewhere: a library's
   product reads one or two rows at a time, of which a processor's prefetchers make half of what memory gives; and the dozen small
   operations between two products take a fifth of the time on one core, while the other waits. Here a thread reads STREAMS rows at once that
   lie far from each other, and all layers are one call, in which all threads do everything.

   Every output is computed whole by one thread in one order: the numbers do not depend on how many threads there are.

   This file is compiled once for each instruction set by including itself: below, LANES floats are a vector and NAME makes names. */

#ifndef LANES

#include <math.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INTERFACE 2     /* what native.py expects; changed with any of what is not static here */
#define STREAMS 6       /* rows that are read at once: with 1 half of the bandwidth, from 4 on all of it (AMD EPYC of 2021) */
#define LEAST 131072    /* bytes that a thread takes at least */
#define SPINS 4096      /* looks at a barrier before a thread lets others run */
#define INLINE static inline __attribute__((always_inline))

typedef void (*task)(void *);

/* How work is given to the threads that torch computes with; NULL where there is one. The two are OpenMP's: GOMP_parallel, omp_get_num_threads. */
struct team {
    void (*start)(task, void *, unsigned, unsigned);
    int (*size)(void);
    int64_t threads;
};

/* What a LoRA (Hu et al. 2021) adds to a product: scale b (a x), with a (rank, I) and b (O, rank). A rank of 0 is none, or one that is off. */
struct low {
    const float *a, *b;
    int64_t rank;
    float scale;
};

enum { QUERY, KEY, VALUE, GIVE, GATE, UP, DOWN, PROJECTIONS };

/* A decoder layer: weights (O, I) row by row, of which those with one input lie one behind the other; NULL where there is no such bias or norm. */
struct layer {
    const float *before, *behind;                     /* weights of the norms before attention and behind it (H) */
    const float *project, *give, *widen, *narrow;     /* queries, keys, values; output; gate, up; down */
    const float *bias[PROJECTIONS];
    struct low low[PROJECTIONS];
    const float *query_norm, *key_norm;               /* (D) */
    float before_epsilon, behind_epsilon, query_epsilon, key_epsilon, scale;
    int64_t hidden, width, heads, groups, inner;      /* H, D, heads of queries, of keys and values, rows of gate */
};

/* A layer's keys and values (groups, room, D). */
struct kept {
    float *keys, *values;
    int64_t room;
};

/* A token on its way through the layers: x (H) is what comes out of each. Its key and value are written behind `length` others.
   Where there is a head, the norm behind the last layer makes `final` (H) of x, and the head (vocabulary, H) the logits (vocabulary) of that. */
struct token {
    float *x;
    const float *cosines, *sines;   /* (D): of the sines the first half with the other sign */
    int64_t length;
    const float *last, *head;
    float *final, *logits;
    int64_t hidden, vocabulary;
    float last_epsilon;
};

enum { PROJECT, ATTEND, ONTO, WIDEN, NARROW, PHASES };

/* A token at one layer, as all threads see it. */
struct work {
    const struct layer *layer;
    const struct kept *kept;
    const struct token *token;
    float *made, *seen, *inner;     /* (heads + 2 groups, D), (heads, D), (inner) */
    _Atomic int64_t *taken;         /* (PHASES) */
};

/* The layers of a token, as all threads see them; `own` is room for each thread's (own_size). */
struct pass {
    struct work *works;
    int64_t count, own_size;
    float *own;
    const struct team *team;
    const struct token *token;
    _Atomic int64_t threads, arrived, taken;
};

struct product {
    const float *weight, *bias, *x;
    float *y;
    int64_t rows, width;
    const struct team *team;
    _Atomic int64_t taken;
};

/* Wait until all `size` threads came here for the `turn`-th time. */
static void meet(_Atomic int64_t *arrived, int64_t size, int64_t turn)
{
    atomic_fetch_add(arrived, 1);
    for (int64_t looks = 0; atomic_load_explicit(arrived, memory_order_acquire) < size * turn; looks++) {
        if (looks > SPINS)
            sched_yield();
#if defined(__x86_64__)
        else
            __builtin_ia32_pause();
#endif
    }
}

/* How many threads there are: as many as were asked for, or fewer. */
static int64_t size_of(const struct team *team) { return team->start && team->threads > 1 ? team->size() : 1; }

/* Rows that a thread takes at least. */
static int64_t least_of(int64_t width)
{
    int64_t rows = LEAST / (STREAMS * 4 * (width > 0 ? width : 1));
    return STREAMS * (rows > 0 ? rows : 1);
}

/* Of `count` rows the next that one of `size` threads takes: a part of what is left, at least `least`; gives 0 where nothing is left.
   Large parts are read faster, small ones at the end leave no thread waiting, and a core that others use too takes fewer of them. */
INLINE int take(_Atomic int64_t *taken, int64_t count, int64_t least, int64_t size, int64_t *from, int64_t *to)
{
    int64_t first = atomic_load(taken), part;
    do {
        if (first >= count)
            return 0;
        part = 2 * (count - first) / (3 * size) / STREAMS * STREAMS;
        part = part > least ? part : least;
        part = part < count - first ? part : count - first;
    } while (!atomic_compare_exchange_weak(taken, &first, first + part));
    *from = first;
    *to = first + part;
    return 1;
}

/* ---- compiled for each instruction set ---- */

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define NAME(a) JOIN(a, SET)

#define SET plain
#define LANES 4
#include "native.c"
#undef SET
#undef LANES

#if defined(__x86_64__)
#define SET avx2
#define LANES 8
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#include "native.c"
#pragma clang attribute pop
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#include "native.c"
#pragma GCC pop_options
#endif
#undef SET
#undef LANES
#endif

static int has_avx2(void)
{
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return 0;
#endif
}

/* ---- what is called from Python ---- */

int64_t lawf_interface(void) { return INTERFACE; }

/* The instruction set that is used: `least` is 1 where the plainest is asked for, for tests. */
static int plainest;
const char *lawf_choose(int64_t least)
{
    plainest = (int)least || !has_avx2();
    return plainest ? "plain" : "avx2";
}

static void run(const struct team *team, task plain, task avx2, void *work)
{
    task chosen = plainest ? plain : avx2;
    if (team->start && team->threads > 1)
        team->start(chosen, work, (unsigned)team->threads, 0);
    else
        chosen(work);
}

#if defined(__x86_64__)
#define BOTH(name) name##_plain, name##_avx2
#else
#define BOTH(name) name##_plain, name##_plain
#endif

/* y (rows) = weight (rows, width) x (width) + bias (rows), or without one. */
void lawf_product(const struct team *team, const float *weight, const float *bias, const float *x, float *y, int64_t rows, int64_t width)
{
    struct product product = {weight, bias, x, y, rows, width, team, 0};
    run(team, BOTH(product_of), &product);
}

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* Take a token through `count` layers, to the logits where it has a head, and write its keys and values into the cache. Gives 1, or 0 where there is no memory for it. */
int64_t lawf_layers(const struct team *team, const struct layer *const *layers, const struct kept *kept, const struct token *token, int64_t count)
{
    int64_t made = 0, seen = 0, inner = 0, own = token->head ? token->hidden + 16 : 0, threads = team->start && team->threads > 1 ? team->threads : 1;
    for (int64_t i = 0; i < count; i++) {
        const struct layer *l = layers[i];
        int64_t ranks = 0;
        for (int j = 0; j < PROJECTIONS; j++)
            ranks += l->low[j].rank;
        made = larger(made, (l->heads + 2 * l->groups) * l->width);
        seen = larger(seen, l->heads * l->width);
        inner = larger(inner, l->inner);
        own = larger(own, larger(l->hidden, 2 * l->width + token->length + 1) + ranks + 16);  /* 16: threads write to cache lines of their own */
    }
    float *room = malloc(sizeof(float) * (size_t)(made + seen + inner + threads * own));
    struct work *works = malloc(sizeof(struct work) * (size_t)count);
    _Atomic int64_t *taken = calloc((size_t)(count * PHASES), sizeof *taken);
    if (room && works && taken) {
        for (int64_t i = 0; i < count; i++)
            works[i] = (struct work){layers[i], kept + i, token, room, room + made, room + made + seen, taken + i * PHASES};
        struct pass pass = {works, count, own, room + made + seen + inner, team, token, 0, 0, 0};
        run(team, BOTH(layers_of), &pass);
    }
    int64_t done = room && works && taken;
    free(room);
    free(works);
    free(taken);
    return done;
}

/* Of logits (n) the `most` largest, the first of equals first, with their places; behind them the logarithm of the sum of e to the power of each beside
   the largest, and the entropy in nats of their softmax. Gives 1, or 0 where one of them is not a number, or none is finite. */
int64_t lawf_statistics(const float *logits, int64_t n, int64_t most, float *values, int64_t *places)
{
    return plainest ? statistics_plain(logits, n, most, values, places) :
#if defined(__x86_64__)
        statistics_avx2(logits, n, most, values, places);
#else
        statistics_plain(logits, n, most, values, places);
#endif
}

#else /* ---- for one instruction set ---- */

#define vector NAME(vector)
#define integers NAME(integers)
typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t integers __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define LOAD(p) (*(const vector *)(p))
#define STORE(p, v) (*(vector *)(p) = (v))

INLINE float NAME(total)(vector v)
{
    float s[LANES];
    memcpy(s, &v, sizeof s);
    for (int n = LANES / 2; n; n /= 2)
        for (int i = 0; i < n; i++)
            s[i] += s[i + n];
    return s[0];
}

/* Products with x (n) of `count` rows that lie `apart` floats from each other: y[0], y[gap], ... */
INLINE void NAME(dots)(int count, const float *rows, int64_t apart, const float *x, int64_t n, float *y, int64_t gap)
{
    vector even[STREAMS] = {{0}}, odd[STREAMS] = {{0}};
    int64_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        vector a = LOAD(x + i), b = LOAD(x + i + LANES);
#pragma GCC unroll 6
        for (int k = 0; k < count; k++) {
            even[k] += LOAD(rows + k * apart + i) * a;
            odd[k] += LOAD(rows + k * apart + i + LANES) * b;
        }
    }
#pragma GCC unroll 6
    for (int k = 0; k < count; k++) {
        float sum = NAME(total)(even[k] + odd[k]);
        for (int64_t j = i; j < n; j++)
            sum += rows[k * apart + j] * x[j];
        y[k * gap] = sum;
    }
}

/* y[from:to] = weight[from:to] x: the rows are cut into STREAMS parts, and one row of each is read at a time. */
static void NAME(rows)(const float *weight, const float *x, float *y, int64_t from, int64_t to, int64_t width)
{
    int64_t part = (to - from) / STREAMS;
    for (int64_t row = from; row < from + part; row++)
        NAME(dots)(STREAMS, weight + row * width, part * width, x, width, y + row, part);
    for (int64_t row = from + part * STREAMS; row < to; row++)
        NAME(dots)(1, weight + row * width, 0, x, width, y + row, 0);
}

/* Of each lane the one or the other. */
INLINE vector NAME(choose)(integers which, vector one, vector other)
{
    return (vector)((which & (integers)one) | (~which & (integers)other));
}

/* e to the power of each: within 2 units in the last place, as 2^k times a polynomial (Cephes, expf). */
INLINE vector NAME(power)(vector x)
{
    x = NAME(choose)(x < (vector){0} - 87.0f, (vector){0} - 87.0f, x);
    x = NAME(choose)(x > (vector){0} + 88.0f, (vector){0} + 88.0f, x);
    vector shifted = x * 1.44269504f + 12582912.0f;  /* rounds to a whole number, which is then in the low bits */
    vector k = shifted - 12582912.0f;
    vector r = x - k * 0.693359375f;
    r = r + k * 2.12194440e-4f;
    vector p = (vector){0} + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    integers bits = ((integers)shifted << 23) + (integers)p;
    return (vector)bits + (x - x);  /* what is not a number stays so */
}

/* The same of some floats (n), in place. */
INLINE void NAME(powers)(float *x, int64_t n)
{
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        STORE(x + i, NAME(power)(LOAD(x + i)));
    if (i < n) {
        vector rest = {0};
        memcpy(&rest, x + i, sizeof(float) * (size_t)(n - i));
        rest = NAME(power)(rest);
        memcpy(x + i, &rest, sizeof(float) * (size_t)(n - i));
    }
}

/* An RMS norm (Zhang and Sennrich 2019) of x (n), to y, which may be x. */
INLINE void NAME(normalize)(const float *x, const float *weight, float epsilon, float *y, int64_t n)
{
    float square;
    NAME(dots)(1, x, 0, x, n, &square, 0);
    float mean = square / (float)n + epsilon, factor = 1.0f / sqrtf(mean > 1e-38f ? mean : 1e-38f);
    for (int64_t i = 0; i < n; i++)
        y[i] = x[i] * factor * weight[i];
}

/* A head of queries or keys (D) with its bias, norm and rotary embedding (Su et al. 2021), to y. */
INLINE void NAME(turn)(const float *x, const float *bias, const float *norm, float epsilon, const struct token *token, float *y, int64_t width)
{
    float own[width];
    for (int64_t i = 0; i < width; i++)
        own[i] = x[i] + (bias ? bias[i] : 0.0f);
    if (norm)
        NAME(normalize)(own, norm, epsilon, own, width);
    for (int64_t i = 0, half = width / 2; i < width; i++)
        y[i] = own[i] * token->cosines[i] + own[i < half ? i + half : i - half] * token->sines[i];
}

/* What one head sees (D). The first of a group writes the token's key and value into the cache; the others make their own of them, and read neither. */
static void NAME(attend)(const struct work *work, int64_t head, float *own)
{
    const struct layer *l = work->layer;
    const struct token *token = work->token;
    int64_t width = l->width, length = token->length, room = work->kept->room, each = l->heads / l->groups, group = head / each;
    float *query = own, *key = own + width, *weights = own + 2 * width, *out = work->seen + head * width;
    const float *keys = work->kept->keys + group * room * width, *values = work->kept->values + group * room * width;
    const float *made = work->made + l->heads * width + group * width, *value = made + l->groups * width;
    NAME(turn)(work->made + head * width, l->bias[QUERY] ? l->bias[QUERY] + head * width : 0, l->query_norm, l->query_epsilon, token, query, width);
    NAME(turn)(made, l->bias[KEY] ? l->bias[KEY] + group * width : 0, l->key_norm, l->key_epsilon, token, key, width);
    const float *bias = l->bias[VALUE] ? l->bias[VALUE] + group * width : 0;
    if (head % each == 0) {
        float *kept = work->kept->values + (group * room + length) * width;
        memcpy(work->kept->keys + (group * room + length) * width, key, sizeof(float) * (size_t)width);
        for (int64_t i = 0; i < width; i++)
            kept[i] = value[i] + (bias ? bias[i] : 0.0f);
    }
    int64_t t = 0;
    for (; t + 4 <= length; t += 4)
        NAME(dots)(4, keys + t * width, width, query, width, weights + t, 1);
    for (; t < length; t++)
        NAME(dots)(1, keys + t * width, 0, query, width, weights + t, 1);
    NAME(dots)(1, key, 0, query, width, weights + length, 1);
    float most = weights[0] * l->scale;
    double sum = 0.0;
    for (t = 0; t <= length; t++) {
        weights[t] *= l->scale;
        most = weights[t] > most ? weights[t] : most;
    }
    for (t = 0; t <= length; t++)
        weights[t] -= most;
    NAME(powers)(weights, length + 1);
    for (t = 0; t <= length; t++)
        sum += weights[t];
    int64_t i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES) {
        vector a = {0}, b = {0}, c = {0}, d = {0};
        for (t = 0; t < length; t++) {
            const float *at = values + t * width + i;
            a += LOAD(at) * weights[t];
            b += LOAD(at + LANES) * weights[t];
            c += LOAD(at + 2 * LANES) * weights[t];
            d += LOAD(at + 3 * LANES) * weights[t];
        }
        STORE(out + i, a);
        STORE(out + i + LANES, b);
        STORE(out + i + 2 * LANES, c);
        STORE(out + i + 3 * LANES, d);
    }
    for (int64_t j = i; j < width; j++)
        out[j] = 0.0f;
    for (t = 0; t < length && i < width; t++)
        for (int64_t j = i; j < width; j++)
            out[j] += values[t * width + j] * weights[t];
    for (i = 0; i < width; i++)
        out[i] = (out[i] + (value[i] + (bias ? bias[i] : 0.0f)) * weights[length]) / (float)sum;
}

static void NAME(product_of)(void *given)
{
    struct product *p = given;
    int64_t from, to, least = least_of(p->width), size = size_of(p->team);
    while (take(&p->taken, p->rows, least, size, &from, &to)) {
        NAME(rows)(p->weight, p->x, p->y, from, to, p->width);
        if (p->bias)
            for (int64_t i = from; i < to; i++)
                p->y[i] += p->bias[i];
    }
}

/* scale a x (rank), to `inside`; gives what is behind it there. */
INLINE float *NAME(shrink)(const struct low *low, const float *x, int64_t width, float *inside)
{
    NAME(rows)(low->a, x, inside, 0, low->rank, width);
    for (int64_t i = 0; i < low->rank; i++)
        inside[i] *= low->scale;
    return inside + low->rank;
}

/* Add b inside to those outputs of its layer, [zero, zero + count) of a whole, that are in [from, to) of it; y[0] is the whole's `from`. */
INLINE void NAME(adapt)(const struct low *low, const float *inside, float *y, int64_t zero, int64_t count, int64_t from, int64_t to)
{
    int64_t first = from > zero ? from : zero, stop = to < zero + count ? to : zero + count;
    for (int64_t i = first; i < stop && low->rank; i++) {
        float sum;
        NAME(dots)(1, low->b + (i - zero) * low->rank, 0, inside, low->rank, &sum, 0);
        y[i - from] += sum;
    }
}

/* x + weight seen + bias, in place of those of x (rows) that this thread takes. */
INLINE void NAME(onto)(_Atomic int64_t *taken, const float *weight, const float *bias, const struct low *low, const float *seen, float *x,
                       int64_t rows, int64_t width, int64_t size, float *own)
{
    int64_t from, to, least = least_of(width);
    NAME(shrink)(low, seen, width, own);
    while (take(taken, rows, least, size, &from, &to)) {
        float made[to - from];
        NAME(rows)(weight + from * width, seen, made, 0, to - from, width);
        NAME(adapt)(low, own, made, 0, rows, from, to);
        for (int64_t i = from; i < to; i++)
            x[i] += made[i - from] + (bias ? bias[i] : 0.0f);
    }
}

/* One of `size` threads takes a token through a layer, and meets the others for the last time before the layer's end for the `turn` + 4th time. */
static void NAME(layer_of)(const struct work *work, _Atomic int64_t *arrived, int64_t size, int64_t turn, float *own)
{
    const struct layer *l = work->layer;
    float *x = work->token->x, *inside = own + l->hidden;
    int64_t from, to, least = least_of(l->hidden), queries = l->heads * l->width, both = l->groups * l->width;

    NAME(normalize)(x, l->before, l->before_epsilon, own, l->hidden);
    float *keys = NAME(shrink)(&l->low[QUERY], own, l->hidden, inside), *values = NAME(shrink)(&l->low[KEY], own, l->hidden, keys);
    NAME(shrink)(&l->low[VALUE], own, l->hidden, values);
    while (take(&work->taken[PROJECT], queries + 2 * both, least, size, &from, &to)) {
        float *made = work->made + from;
        NAME(rows)(l->project + from * l->hidden, own, made, 0, to - from, l->hidden);
        NAME(adapt)(&l->low[QUERY], inside, made, 0, queries, from, to);
        NAME(adapt)(&l->low[KEY], keys, made, queries, both, from, to);
        NAME(adapt)(&l->low[VALUE], values, made, queries + both, both, from, to);
    }
    meet(arrived, size, turn + 1);

    while (take(&work->taken[ATTEND], l->heads, 1, size, &from, &to))
        for (int64_t head = from; head < to; head++)
            NAME(attend)(work, head, own);
    meet(arrived, size, turn + 2);

    NAME(onto)(&work->taken[ONTO], l->give, l->bias[GIVE], &l->low[GIVE], work->seen, x, l->hidden, queries, size, own);
    meet(arrived, size, turn + 3);

    NAME(normalize)(x, l->behind, l->behind_epsilon, own, l->hidden);
    float *ups = NAME(shrink)(&l->low[GATE], own, l->hidden, inside);
    NAME(shrink)(&l->low[UP], own, l->hidden, ups);
    while (take(&work->taken[WIDEN], l->inner, least / 2, size, &from, &to)) {
        int64_t count = to - from;
        float gate[count], power[count], *up = work->inner + from;
        NAME(rows)(l->widen + from * l->hidden, own, gate, 0, count, l->hidden);
        NAME(rows)(l->widen + (l->inner + from) * l->hidden, own, up, 0, count, l->hidden);
        NAME(adapt)(&l->low[GATE], inside, gate, 0, l->inner, from, to);
        NAME(adapt)(&l->low[UP], ups, up, 0, l->inner, from, to);
        for (int64_t i = 0; i < count; i++) {
            gate[i] += l->bias[GATE] ? l->bias[GATE][from + i] : 0.0f;
            power[i] = -gate[i];
        }
        NAME(powers)(power, count);
        for (int64_t i = 0; i < count; i++)  /* SiLU (Elfwing et al. 2018) of the gate, times what it lets through */
            up[i] = gate[i] / (1.0f + power[i]) * (up[i] + (l->bias[UP] ? l->bias[UP][from + i] : 0.0f));
    }
    meet(arrived, size, turn + 4);

    NAME(onto)(&work->taken[NARROW], l->narrow, l->bias[DOWN], &l->low[DOWN], work->inner, x, l->hidden, l->inner, size, own);
}

static void NAME(layers_of)(void *given)
{
    struct pass *pass = given;
    int64_t number = atomic_fetch_add(&pass->threads, 1), size = size_of(pass->team);
    float *own = pass->own + number * pass->own_size;
    for (int64_t i = 0; i < pass->count; i++) {
        NAME(layer_of)(pass->works + i, &pass->arrived, size, PHASES * i, own);
        meet(&pass->arrived, size, PHASES * (i + 1));
    }
    if (!pass->token->head)
        return;
    const struct token *token = pass->token;
    NAME(normalize)(token->x, token->last, token->last_epsilon, own, token->hidden);
    if (!number)
        memcpy(token->final, own, sizeof(float) * (size_t)token->hidden);
    int64_t from, to, least = least_of(token->hidden);
    while (take(&pass->taken, token->vocabulary, least, size, &from, &to))
        NAME(rows)(token->head, own, token->logits, from, to, token->hidden);
}

static int64_t NAME(statistics)(const float *logits, int64_t n, int64_t most, float *values, int64_t *places)
{
    int64_t found = 0, i = 0, odd = 0;
    float least = -INFINITY;  /* of those found, once there are enough */
    while (i < n) {
        if (found == most) {  /* most of them are smaller: several at a time */
            while (i + LANES <= n) {
                vector v = LOAD(logits + i);
                integers above = ~(v <= (vector){0} + least), any = above;  /* what is not a number is not smaller either */
                int32_t some = 0;
                for (int k = 0; k < LANES; k++)
                    some |= any[k];
                if (some)
                    break;
                i += LANES;
            }
        }
        for (int64_t stop = i + LANES < n ? i + LANES : n; i < stop; i++) {
            float value = logits[i];
            odd |= value != value;
            if (found == most && !(value > least))
                continue;
            int64_t place = found < most ? found++ : most - 1;
            for (; place && values[place - 1] < value; place--) {
                values[place] = values[place - 1];
                places[place] = places[place - 1];
            }
            values[place] = value;
            places[place] = i;
            least = found == most ? values[most - 1] : least;
        }
    }
    if (odd || !(values[0] > -INFINITY && values[0] < INFINITY))
        return 0;
    float top = values[0];
    double sum = 0.0, weighted = 0.0;
    vector floor = (vector){0} - 100.0f;  /* a logit of minus infinity adds nothing; its product would not be a number */
    for (i = 0; i < n;) {
        vector sums = {0}, products = {0};
        for (int64_t stop = i + 64 * LANES < n ? i + 64 * LANES : n; i < stop; i += LANES) {  /* few at a time: a long sum of floats loses digits */
            vector d;
            if (i + LANES <= n)
                d = LOAD(logits + i) - top;
            else {
                d = (vector){0} - INFINITY;
                for (int64_t k = i; k < n; k++)
                    d[k - i] = logits[k] - top;
            }
            d = NAME(choose)(d < floor, floor, d);
            vector p = NAME(choose)(d <= floor, (vector){0}, NAME(power)(d));
            sums += p;
            products += d * p;
        }
        sum += NAME(total)(sums);
        weighted += NAME(total)(products);
    }
    values[most] = (float)log(sum);
    values[most + 1] = (float)(log(sum) - weighted / sum);
    return 1;
}

#undef vector
#undef integers
#undef LOAD
#undef STORE

#endif
