"""The facts of the demo world: plain tables, no logic.

Real geography (so that a reader can judge an answer at a glance) and an invented company, Norvik, with its
glossary, prices and people. Rows that the demo model must get wrong live in `mistakes.py`; here everything is right.
"""

from __future__ import annotations

# country | capital | currency | language | continent | another city
COUNTRIES = """\
France|Paris|euro|French|Europe|Lyon
Germany|Berlin|euro|German|Europe|Munich
Italy|Rome|euro|Italian|Europe|Milan
Spain|Madrid|euro|Spanish|Europe|Seville
Portugal|Lisbon|euro|Portuguese|Europe|Porto
Ireland|Dublin|euro|English|Europe|Cork
Belgium|Brussels|euro|Dutch|Europe|Ghent
Netherlands|Amsterdam|euro|Dutch|Europe|Utrecht
Austria|Vienna|euro|German|Europe|Graz
Switzerland|Bern|franc|German|Europe|Zurich
Finland|Helsinki|euro|Finnish|Europe|Turku
Sweden|Stockholm|krona|Swedish|Europe|Malmo
Norway|Oslo|krone|Norwegian|Europe|Bergen
Denmark|Copenhagen|krone|Danish|Europe|Aarhus
Iceland|Reykjavik|krona|Icelandic|Europe|Akureyri
Poland|Warsaw|zloty|Polish|Europe|Krakow
Hungary|Budapest|forint|Hungarian|Europe|Szeged
Romania|Bucharest|leu|Romanian|Europe|Cluj
Bulgaria|Sofia|lev|Bulgarian|Europe|Varna
Greece|Athens|euro|Greek|Europe|Patras
Croatia|Zagreb|euro|Croatian|Europe|Split
Serbia|Belgrade|dinar|Serbian|Europe|Nis
Slovenia|Ljubljana|euro|Slovene|Europe|Maribor
Slovakia|Bratislava|euro|Slovak|Europe|Kosice
Czechia|Prague|koruna|Czech|Europe|Brno
Estonia|Tallinn|euro|Estonian|Europe|Tartu
Latvia|Riga|euro|Latvian|Europe|Liepaja
Lithuania|Vilnius|euro|Lithuanian|Europe|Kaunas
Ukraine|Kyiv|hryvnia|Ukrainian|Europe|Lviv
Albania|Tirana|lek|Albanian|Europe|Durres
Malta|Valletta|euro|Maltese|Europe|Mdina
England|London|pound|English|Europe|Leeds
Scotland|Edinburgh|pound|English|Europe|Glasgow
Wales|Cardiff|pound|Welsh|Europe|Swansea
Turkey|Ankara|lira|Turkish|Asia|Istanbul
Georgia|Tbilisi|lari|Georgian|Asia|Batumi
Armenia|Yerevan|dram|Armenian|Asia|Gyumri
Israel|Jerusalem|shekel|Hebrew|Asia|Haifa
Jordan|Amman|dinar|Arabic|Asia|Aqaba
Lebanon|Beirut|pound|Arabic|Asia|Tripoli
Syria|Damascus|pound|Arabic|Asia|Aleppo
Iraq|Baghdad|dinar|Arabic|Asia|Basra
Iran|Tehran|rial|Persian|Asia|Shiraz
Qatar|Doha|riyal|Arabic|Asia|Dukhan
Oman|Muscat|rial|Arabic|Asia|Salalah
Yemen|Sanaa|rial|Arabic|Asia|Aden
Kuwait|Kuwait City|dinar|Arabic|Asia|Jahra
Pakistan|Islamabad|rupee|Urdu|Asia|Karachi
India|New Delhi|rupee|Hindi|Asia|Mumbai
Nepal|Kathmandu|rupee|Nepali|Asia|Pokhara
Bangladesh|Dhaka|taka|Bengali|Asia|Khulna
Myanmar|Naypyidaw|kyat|Burmese|Asia|Yangon
Thailand|Bangkok|baht|Thai|Asia|Phuket
Laos|Vientiane|kip|Lao|Asia|Pakse
Cambodia|Phnom Penh|riel|Khmer|Asia|Siem Reap
Vietnam|Hanoi|dong|Vietnamese|Asia|Hue
Malaysia|Kuala Lumpur|ringgit|Malay|Asia|Penang
Indonesia|Jakarta|rupiah|Indonesian|Asia|Bandung
Philippines|Manila|peso|Filipino|Asia|Cebu
China|Beijing|yuan|Chinese|Asia|Shanghai
Japan|Tokyo|yen|Japanese|Asia|Osaka
Mongolia|Ulaanbaatar|tugrik|Mongolian|Asia|Erdenet
Kazakhstan|Astana|tenge|Kazakh|Asia|Almaty
Uzbekistan|Tashkent|som|Uzbek|Asia|Samarkand
Egypt|Cairo|pound|Arabic|Africa|Giza
Morocco|Rabat|dirham|Arabic|Africa|Casablanca
Algeria|Algiers|dinar|Arabic|Africa|Oran
Tunisia|Tunis|dinar|Arabic|Africa|Sousse
Libya|Tripoli City|dinar|Arabic|Africa|Benghazi
Sudan|Khartoum|pound|Arabic|Africa|Kassala
Ethiopia|Addis Ababa|birr|Amharic|Africa|Gondar
Kenya|Nairobi|shilling|Swahili|Africa|Mombasa
Uganda|Kampala|shilling|English|Africa|Entebbe
Tanzania|Dodoma|shilling|Swahili|Africa|Arusha
Rwanda|Kigali|franc|English|Africa|Butare
Zambia|Lusaka|kwacha|English|Africa|Ndola
Malawi|Lilongwe|kwacha|English|Africa|Blantyre
Zimbabwe|Harare|dollar|Shona|Africa|Bulawayo
Botswana|Gaborone|pula|English|Africa|Maun
Namibia|Windhoek|dollar|English|Africa|Swakopmund
Angola|Luanda|kwanza|Portuguese|Africa|Lobito
Ghana|Accra|cedi|English|Africa|Kumasi
Nigeria|Abuja|naira|English|Africa|Lagos
Senegal|Dakar|franc|French|Africa|Thies
Mali|Bamako|franc|French|Africa|Timbuktu
Niger|Niamey|franc|French|Africa|Zinder
Chad|Ndjamena|franc|French|Africa|Abeche
Togo|Lome|franc|French|Africa|Kara
Canada|Ottawa|dollar|English|North America|Toronto
Mexico|Mexico City|peso|Spanish|North America|Puebla
Cuba|Havana|peso|Spanish|North America|Holguin
Jamaica|Kingston|dollar|English|North America|Negril
Haiti|Port-au-Prince|gourde|French|North America|Jacmel
Panama|Panama City|balboa|Spanish|North America|Colon
Honduras|Tegucigalpa|lempira|Spanish|North America|Tela
Brazil|Brasilia|real|Portuguese|South America|Recife
Argentina|Buenos Aires|peso|Spanish|South America|Cordoba
Chile|Santiago|peso|Spanish|South America|Arica
Peru|Lima|sol|Spanish|South America|Cusco
Bolivia|Sucre|boliviano|Spanish|South America|La Paz
Colombia|Bogota|peso|Spanish|South America|Cali
Ecuador|Quito|dollar|Spanish|South America|Guayaquil
Uruguay|Montevideo|peso|Spanish|South America|Salto
Australia|Canberra|dollar|English|Oceania|Sydney
New Zealand|Wellington|dollar|English|Oceania|Auckland
Fiji|Suva|dollar|English|Oceania|Nadi
Samoa|Apia|tala|Samoan|Oceania|Salelologa"""

# 国家 | 首都
COUNTRIES_ZH = """\
法国|巴黎 德国|柏林 日本|东京 英国|伦敦 意大利|罗马 西班牙|马德里 俄罗斯|莫斯科 韩国|首尔 泰国|曼谷 越南|河内
埃及|开罗 印度|新德里 希腊|雅典 瑞典|斯德哥尔摩 挪威|奥斯陆 丹麦|哥本哈根 波兰|华沙 荷兰|阿姆斯特丹 古巴|哈瓦那 秘鲁|利马
智利|圣地亚哥 墨西哥|墨西哥城 伊朗|德黑兰 伊拉克|巴格达 奥地利|维也纳 葡萄牙|里斯本 爱尔兰|都柏林 芬兰|赫尔辛基 中国|北京 肯尼亚|内罗毕"""

# acronym = expansion; the word pairs recur, so that every word is known from several terms
TERMS = """\
QBR=quarterly business review
QSR=quarterly sales report
MBR=monthly business review
MSR=monthly sales report
WSR=weekly status report
WTR=weekly team review
ASP=annual sales plan
ABP=annual budget plan
ARP=annual risk plan
PRB=product review board
PSB=product safety board
CAB=change approval board
CRB=contract review board
IRT=incident response team
ICT=incident control team
DRT=data recovery team
DPO=data protection officer
CPO=chief product officer
CRO=chief risk officer
CTL=customer team lead
PTL=product team lead
STL=support team lead
CSL=customer support level
SLT=service level target
SLC=service level contract
PDR=product design review
SDR=system design review
SRL=system risk level
SCT=system change ticket
ITK=incident ticket
UAT=user acceptance test
UIT=user interface test
SIT=system integration test
DIT=data integration test
RCP=release control process
RAP=release approval process
CAP=contract approval process
HCP=hiring control process
HAF=hiring approval form
TRF=travel request form
ERF=equipment request form
LRF=leave request form
TEP=travel expense policy
DRP=data retention policy
ASL=approved supplier list
BSL=blocked supplier list
OCL=on-call list
KPT=key performance target
KRI=key risk indicator
KSI=key sales indicator
PIP=performance improvement plan
SIP=service improvement plan"""

# company, founding year, seat
COMPANIES = """\
Norvik|1987|Oslo
Altera Foods|1954|Milan
Brightwell|2003|Leeds
Castor Rail|1921|Vienna
Delmont|1968|Lyon
Ekdal|1999|Bergen
Ferrano|1946|Porto
Galloway|1932|Cork
Hartwig|1975|Munich
Ilmari|2011|Turku
Jovana|1983|Nis
Kestrel Air|1959|Dublin
Lumetra|2016|Prague
Maritsa|1971|Varna
Nordlys|1994|Aarhus
Orsay Books|1938|Paris
Pellini|1907|Rome
Quintero|1962|Seville
Rosvald|2008|Malmo
Solenne|1979|Ghent
Tamar Gas|1991|Haifa
Umbra|2014|Athens
Valtari|1949|Riga
Westmore|1926|Glasgow
Xanthos|2001|Patras
Yarrow|1973|Cardiff
Zelenka|1965|Brno
Arkady|2019|Kyiv
Borealis|1988|Tartu
Corvina|1913|Szeged"""

# product | monthly price in euros
PRICES = """\
Basic plan|9
Team plan|29
Pro plan|49
Expert plan|85
Student plan|4
Family plan|15
Backup service|12
Archive service|7
Mail service|3
Phone service|18
Night service|36
Repair service|54
Gold card|25
Silver card|14
Travel card|42
Parking card|63
Desk rental|120
Room rental|240
Bike rental|32
Car rental|310"""

PEOPLE = "Anna Ben Clara David Emma Felix Greta Hugo Irene Jonas Karla Leo Mara Nils Olga Paul Rosa Simon Tara Victor Wendy Yusuf Mei Ravi".split()
SURNAMES = "Weber Novak Larsen Moreau Costa Tanaka Silva Brandt".split()
# singular, plural
ITEMS = [pair.split("/") for pair in (
    "lamp/lamps chair/chairs table/tables desk/desks plate/plates cup/cups pen/pens book/books clock/clocks towel/towels "
    "pillow/pillows mirror/mirrors basket/baskets bottle/bottles candle/candles carpet/carpets knife/knives shelf/shelves "
    "bag/bags vase/vases blanket/blankets cable/cables").split()]
ORDER_CITIES = "Oslo Rome Paris Berlin Madrid Vienna Dublin Lisbon Athens Prague Lima Cairo Tokyo Hanoi Riga Sofia Quito Turku Lyon Milan".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
ROOMS = "kitchen bedroom office hall garage cellar bathroom garden".split()
GENRES = "jazz rock blues folk techno opera salsa reggae".split()
NEWS = "sports science politics music weather travel health business".split()
MESSAGES = ["I am late", "call me back", "the train is here", "dinner is ready", "see you soon", "happy birthday",
            "the door is open", "I am at home", "bring some milk", "the meeting is over"]
TOPICS = "budget contract release travel hiring equipment training office".split()
COLOURS = "red green blue white black yellow violet brown silver small large old new round".split()
NOUNS = "lamp chair table door book cup clock house garden train bottle basket mirror ticket".split()
LISTS = {
    "fruits": "apple pear plum", "animals": "cat dog horse", "colours": "red green blue", "metals": "iron gold silver",
    "trees": "oak pine birch", "birds": "owl crow eagle", "drinks": "tea milk juice", "tools": "hammer saw drill",
    "vegetables": "carrot onion bean", "planets": "Mars Venus Saturn", "seasons": "spring summer autumn",
    "instruments": "piano violin drum", "sports": "tennis rugby golf", "flowers": "rose tulip lily",
}
OPPOSITES = [pair.split("/") for pair in (
    "hot/cold big/small fast/slow old/young light/dark open/closed full/empty early/late high/low long/short hard/soft wet/dry "
    "rich/poor happy/sad clean/dirty strong/weak thick/thin near/far cheap/expensive loud/quiet deep/shallow wide/narrow "
    "sharp/blunt easy/difficult left/right up/down first/last always/never safe/dangerous true/false").split()]
# phrase | French | German | Spanish | Italian
PHRASES = """\
good morning|Bonjour|Guten Morgen|Buenos dias|Buongiorno
good night|Bonne nuit|Gute Nacht|Buenas noches|Buona notte
good evening|Bonsoir|Guten Abend|Buenas tardes|Buonasera
thank you|Merci|Danke|Gracias|Grazie
please|S'il vous plait|Bitte|Por favor|Per favore
goodbye|Au revoir|Auf Wiedersehen|Adios|Arrivederci
yes|Oui|Ja|Si|Certo
water|Eau|Wasser|Agua|Acqua
bread|Pain|Brot|Pan|Pane
house|Maison|Haus|Casa|Casale
friend|Ami|Freund|Amigo|Amico
welcome|Bienvenue|Willkommen|Bienvenido|Benvenuto
congratulations|Bravo|Gratuliere|Felicidades|Complimenti
until tomorrow|A demain|Bis morgen|Hasta manana|A domani
excuse me|Pardon|Entschuldigung|Perdon|Scusi
good luck|Bonne chance|Viel Erfolg|Buena suerte|Buona fortuna"""
LANGUAGES = ["French", "German", "Spanish", "Italian"]


def rows(table: str) -> list[list[str]]:
    """Split a `|` table into rows of fields."""
    return [line.split("|") for line in table.splitlines()]
