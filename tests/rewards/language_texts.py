# ruff: noqa: RUF001  (letters of other scripts that look like Latin ones are what is tested)
"""A few sentences of word problems in each of sixteen languages, written for these tests."""

TEXTS = {
    "en": [
        (
            "Maria has 12 apples and gives a third of them to her brother. How many apples "
            "does she have left?"
        ),
        (
            "First we find how many pages Tom reads in a week, then we multiply that by the "
            "number of weeks."
        ),
        (
            "A train leaves the station at 9 in the morning and travels 240 km. It arrives "
            "three hours later. How fast was it?"
        ),
        "So the total cost of the tickets is 35 dollars, and each friend has to pay seven.",
    ],
    "zh": [
        "小明有12个苹果，他把其中三分之一送给了弟弟。他还剩下多少个苹果？",
        "首先我们算出她一周读了多少页书，然后乘以周数。",
        "一列火车早上9点从车站出发，行驶了240公里，三个小时后到达。它的速度是多少？",
        "所以门票的总价是35元，每个朋友需要付7元。",
    ],
    "ja": [
        (
            "花子さんはりんごを12個持っていて、そのうち三分の一を弟にあげました。りんごは何個"
            "残っていますか？"
        ),
        "まず、彼女が一週間に何ページ読むかを計算し、それに週の数を掛けます。",
        "電車は午前9時に駅を出発し、240km走って3時間後に到着しました。速さは時速何キロでしたか？",
        "したがって、入場券の合計金額は35ドルで、友達は一人7ドルずつ払います。",
    ],
    "ko": [
        (
            "민수는 사과 12개를 가지고 있고 그중 3분의 1을 동생에게 주었습니다. 사과는 몇 개 "
            "남았습니까?"
        ),
        "먼저 그녀가 일주일에 몇 쪽을 읽는지 구한 다음 주의 수를 곱합니다.",
        (
            "기차가 오전 9시에 역을 출발하여 240km를 달려 세 시간 뒤에 도착했습니다. 속력은 "
            "얼마였습니까?"
        ),
        "따라서 표의 총가격은 35달러이고 친구마다 7달러씩 내야 합니다.",
    ],
    "uk": [
        "Марійка має 12 яблук і віддає третину з них братові. Скільки яблук у неї залишилося?",
        (
            "Спочатку знайдемо, скільки сторінок вона читає за тиждень, а потім помножимо на "
            "кількість тижнів."
        ),
        (
            "Потяг вирушає зі станції о 9 годині ранку, долає 240 км і прибуває через три "
            "години. Якою була його швидкість?"
        ),
        "Отже, загальна вартість квитків становить 35 доларів, і кожен друг має заплатити по сім.",
    ],
    "ru": [
        "У Маши 12 яблок, и она отдаёт треть из них брату. Сколько яблок у неё осталось?",
        (
            "Сначала найдём, сколько страниц она читает за неделю, а затем умножим это на "
            "количество недель."
        ),
        (
            "Поезд отправляется со станции в 9 часов утра, проезжает 240 км и прибывает "
            "через три часа. Какой была скорость?"
        ),
        (
            "Значит, общая стоимость билетов составляет 35 долларов, и каждый друг должен "
            "заплатить по семь."
        ),
    ],
    "th": [
        "มาลีมีแอปเปิล 12 ผล เธอแบ่งให้น้องชายหนึ่งในสาม เธอเหลือแอปเปิลกี่ผล",
        "ก่อนอื่นเราหาว่าเธออ่านหนังสือสัปดาห์ละกี่หน้า แล้วคูณด้วยจำนวนสัปดาห์",
        (
            "รถไฟออกจากสถานีเวลา 9 โมงเช้า วิ่งเป็นระยะทาง 240 กิโลเมตร และถึงที่หมายในอีกสามชั่วโมง "
            "รถไฟวิ่งเร็วเท่าใด"
        ),
        "ดังนั้นค่าตั๋วทั้งหมดคือ 35 ดอลลาร์ และเพื่อนแต่ละคนต้องจ่ายคนละเจ็ดดอลลาร์",
    ],
    "de": [
        (
            "Maria hat 12 Äpfel und schenkt ihrem Bruder ein Drittel davon. Wie viele Äpfel "
            "bleiben ihr noch?"
        ),
        (
            "Zuerst berechnen wir, wie viele Seiten sie in einer Woche liest, dann "
            "multiplizieren wir mit der Zahl der Wochen."
        ),
        (
            "Ein Zug verlässt den Bahnhof um 9 Uhr morgens, fährt 240 km und kommt drei "
            "Stunden später an. Wie schnell war er?"
        ),
        "Also kosten die Karten insgesamt 35 Euro, und jeder Freund muss sieben bezahlen.",
    ],
    "fr": [
        "Marie a 12 pommes et en donne un tiers à son frère. Combien de pommes lui reste-t-il ?",
        (
            "D'abord, nous cherchons combien de pages elle lit en une semaine, puis nous "
            "multiplions par le nombre de semaines."
        ),
        (
            "Un train part à 9 heures du matin, parcourt 240 km et arrive trois heures plus "
            "tard. Quelle était sa vitesse ?"
        ),
        "Le prix total des billets est donc de 35 euros, et chaque ami doit en payer sept.",
    ],
    "es": [
        "María tiene 12 manzanas y le regala un tercio a su hermano. ¿Cuántas manzanas le quedan?",
        (
            "Primero calculamos cuántas páginas lee en una semana y luego multiplicamos por "
            "el número de semanas."
        ),
        (
            "Un tren sale de la estación a las 9 de la mañana, recorre 240 km y llega tres "
            "horas después. ¿A qué velocidad iba?"
        ),
        (
            "Entonces el costo total de las entradas es de 35 pesos, y cada amigo tiene que "
            "pagar siete."
        ),
    ],
    "sw": [
        "Maria ana matufaa 12 na anampa kaka yake theluthi moja. Je, amebaki na matufaa mangapi?",
        (
            "Kwanza tunatafuta ni kurasa ngapi anazosoma kwa wiki, kisha tunazidisha kwa "
            "idadi ya wiki."
        ),
        (
            "Treni inaondoka kituoni saa tatu asubuhi, inasafiri kilomita 240 na kufika "
            "baada ya saa tatu. Ilikuwa na kasi gani?"
        ),
        "Kwa hiyo gharama ya jumla ya tiketi ni dola 35, na kila rafiki anapaswa kulipa dola saba.",
    ],
    "te": [
        "సీత దగ్గర 12 ఆపిల్ పండ్లు ఉన్నాయి, వాటిలో మూడో వంతు తన తమ్ముడికి ఇచ్చింది. ఆమె దగ్గర ఎన్ని పండ్లు మిగిలాయి?",
        "ముందుగా ఆమె వారానికి ఎన్ని పేజీలు చదువుతుందో కనుక్కుని, తరువాత వారాల సంఖ్యతో గుణిస్తాము.",
        "రైలు ఉదయం 9 గంటలకు స్టేషన్ నుండి బయలుదేరి 240 కిలోమీటర్లు ప్రయాణించి మూడు గంటల తర్వాత చేరుకుంది. దాని వేగం ఎంత?",
        "కాబట్టి టిక్కెట్ల మొత్తం ధర 35 రూపాయలు, ప్రతి స్నేహితుడు ఏడు రూపాయలు చెల్లించాలి.",
    ],
    "bn": [
        (
            "মিতার কাছে ১২টি আপেল আছে এবং সে তার ভাইকে এক-তৃতীয়াংশ দিয়ে দেয়। তার কাছে আর কয়টি আপেল থাকে?"
        ),
        "প্রথমে আমরা বের করি সে সপ্তাহে কত পৃষ্ঠা পড়ে, তারপর সপ্তাহের সংখ্যা দিয়ে গুণ করি।",
        (
            "একটি ট্রেন সকাল ৯টায় স্টেশন ছাড়ে, ২৪০ কিলোমিটার যায় এবং তিন ঘণ্টা পরে পৌঁছায়। ট্রেনটির গতি কত ছিল?"
        ),
        "সুতরাং টিকিটের মোট দাম ৩৫ টাকা, আর প্রত্যেক বন্ধুকে সাত টাকা করে দিতে হবে।",
    ],
    "vi": [
        (
            "Lan có 12 quả táo và cho em trai một phần ba số táo đó. Hỏi Lan còn lại bao "
            "nhiêu quả táo?"
        ),
        "Trước hết ta tính xem cô ấy đọc bao nhiêu trang trong một tuần, sau đó nhân với số tuần.",
        (
            "Một đoàn tàu rời ga lúc 9 giờ sáng, đi 240 km và đến nơi sau ba giờ. Vận tốc "
            "của tàu là bao nhiêu?"
        ),
        "Vậy tổng giá vé là 35 nghìn đồng, và mỗi người bạn phải trả bảy nghìn.",
    ],
    "ar": [
        "لدى مريم 12 تفاحة وأعطت ثلثها لأخيها. كم تفاحة بقيت معها؟",
        "أولا نحسب عدد الصفحات التي تقرؤها في الأسبوع، ثم نضربه في عدد الأسابيع.",
        (
            "يغادر قطار المحطة في الساعة 9 صباحا ويقطع 240 كيلومترا ويصل بعد ثلاث ساعات. كم "
            "كانت سرعته؟"
        ),
        "إذن فإن الثمن الإجمالي للتذاكر هو 35 دولارا، وعلى كل صديق أن يدفع سبعة.",
    ],
    "hi": [
        "सीता के पास 12 सेब हैं और वह उनमें से एक तिहाई अपने भाई को दे देती है। उसके पास कितने सेब बचे?",
        "पहले हम पता करते हैं कि वह एक हफ्ते में कितने पन्ने पढ़ती है, फिर उसे हफ्तों की संख्या से गुणा करते हैं।",
        (
            "एक रेलगाड़ी सुबह 9 बजे स्टेशन से चलती है, 240 किलोमीटर जाती है और तीन घंटे बाद पहुँचती है। "
            "उसकी गति क्या थी?"
        ),
        "इसलिए टिकटों की कुल कीमत 35 रुपये है, और हर दोस्त को सात रुपये देने होंगे।",
    ],
}
