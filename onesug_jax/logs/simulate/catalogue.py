"""The catalogue of the simulated shop: product words in English and Chinese, and their combination.

The brands are invented. A query is a list of words from one category (brand, colour or quality,
product, use) in the order in which people type them, so a few hundred words give tens of thousands
of distinct queries. `world` chooses the queries of a shop from them; nothing here is random.
"""

# ruff: noqa: E501  (a shelf is a line)

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from onesug_jax.errors import UserError


@dataclass(frozen=True)
class Category:
    """One shelf of the shop: its products, brands, kinds and uses."""

    name: str
    products: tuple[str, ...]
    brands: tuple[str, ...]
    kinds: tuple[str, ...]
    uses: tuple[str, ...]


# name | products | brands | kinds | uses
_EN = """
shoes | running shoes, sandals, rain boots, hiking boots, sneakers, slippers, ballet flats, loafers, ankle boots, football boots, shoe laces, insoles, skate shoes, clogs | velorra, stridemoor, kapuno, oakheel, zentrek, marisole | white, black, wide, waterproof, leather, lightweight, size 8, size 10, vegan, red | for women, for men, for kids, for toddlers, for nurses
clothes | summer dress, rain jacket, hoodie, jeans, wool sweater, cargo pants, linen shirt, pyjamas, leggings, winter coat, t shirt, cardigan, swim shorts, skirt, wool socks, bath robe | norlace, halvey, brindlecoat, omiru, fernwick, tavelle, loomaro | black, white, green, plus size, long sleeve, oversized, slim fit, vintage, cotton, striped | for women, for men, for girls, for boys, for teens
garden | garden hose, lawn mower, flower pots, raised bed, pruning shears, bird feeder, watering can, compost bin, hedge trimmer, grass seed, tomato cage, fire pit, solar lights, patio umbrella, wheelbarrow | greenquill, mossgate, terravale, beewick, sproutly, ardenroot | cordless, large, small, metal, cedar, heavy duty, hanging, self watering, folding | for balcony, for vegetables, for small yards, for roses, with stand
kitchen | frying pan, kettle, knife set, cutting board, stand mixer, coffee grinder, rice cooker, mixing bowls, baking sheet, water filter, lunch box, air fryer, toaster, spice rack, measuring cups, ice cube tray | cookaro, panvelle, brewfeld, simmerly, kesselby, orvatta | stainless steel, cast iron, ceramic, non stick, glass, bamboo, mini, electric, large, silicone | for induction, for two, for camping, with lid, with timer
toys | building blocks, wooden train, doll house, puzzle, plush bear, toy kitchen, kite, marble run, play tent, toy tractor, bath toys, board game, card game, slime kit, racing track, water blaster | blockadoo, pipkinny, tumbolo, zuzibear, rollowood, minidorf | wooden, magnetic, giant, glow in the dark, soft, remote control, 500 piece, 1000 piece, educational | for toddlers, for 3 year olds, for 6 year olds, for adults, for two players
phones | phone case, phone charger, screen protector, power bank, car phone holder, usb c cable, wireless charger, selfie stick, phone lanyard, sim card tool, phone stand, memory card | glassaro, voltimo, kabelix, tekuna, ohmly, snapvero | clear, black, magnetic, fast, slim, leather, 3 pack, 6 feet, 10 feet, rugged | for tablet, for car, for desk, for travel, with ring
audio | wireless earbuds, headphones, bluetooth speaker, record player, sound bar, microphone, guitar strings, ukulele, keyboard piano, music stand, drum sticks, amplifier, earbud case | sonomira, brassil, tonvik, echodale, lyrro, basswyn | noise cancelling, black, white, portable, waterproof, wired, over ear, mini, usb, vintage | for kids, for running, for beginners, for tv, for podcasts
computers | laptop stand, laptop bag, mechanical keyboard, wireless mouse, monitor arm, webcam, usb hub, ssd drive, printer paper, ink cartridge, gaming chair, desk mat, graphics tablet, router, hdmi cable | datavik, pixorra, clackwell, monivo, gridsby, netarro | wireless, 27 inch, 15 inch, ergonomic, quiet, white, rgb, 1tb, usb c, dual, large | for gaming, for office, for students, for left hand, for home
beauty | face cream, lip balm, shampoo, hair dryer, nail polish, sun screen, mascara, perfume, body lotion, hair clips, makeup brushes, face mask, conditioner, soap bar, hand cream, eye liner | rosavelle, lumiskin, petalore, aquenne, solbalm, mirabeth | natural, unscented, organic, vitamin c, matte, waterproof, sensitive, travel size, gentle, red | for women, for men, for dry skin, for curly hair, for babies
pets | dog bed, cat tree, dog leash, cat litter, dog food, fish tank, bird cage, cat scratcher, dog harness, pet carrier, hamster wheel, dog treats, cat toys, pet brush, food bowl | wagmoor, purrlin, tailby, finnaro, barkeley, whiskro | large, small, orthopedic, washable, grain free, reflective, automatic, elevated, interactive, cheap | for puppies, for kittens, for large dogs, for senior cats, for rabbits
sports | yoga mat, dumbbells, resistance bands, tennis racket, bike helmet, jump rope, basketball, swim goggles, gym bag, water bottle, bike lights, boxing gloves, foam roller, soccer ball, golf balls, ski socks | athlorn, peakrow, flexidor, sprintavo, tourmak, gripsen | thick, adjustable, 10 lb, 20 lb, heavy, pink, blue, indoor, outdoor, non slip, pro | for women, for men, for kids, for beginners, for home gym
camping | tent, sleeping bag, camp stove, headlamp, hammock, cooler, camping chair, backpack, water filter straw, tarp, lantern, trekking poles, air mattress, multi tool, dry bag, fire starter | hollowpine, wildmarrow, trailune, campora, ridgeby, nordflint | 2 person, 4 person, ultralight, inflatable, rechargeable, folding, waterproof, insulated, green, 40 liter | for winter, for backpacking, for kids, for car camping, for festivals
office | notebook, gel pens, desk lamp, stapler, sticky notes, planner, file folders, whiteboard, pencil case, highlighters, office chair, paper clips, envelopes, calendar, fountain pen, label maker | inkaroo, papermere, quillvane, deskora, noteby, margin lane | a4, a5, pastel, black, refillable, dotted, weekly, magnetic, fine tip, erasable, leather | for school, for teachers, for home office, for journaling, for students
home | throw pillow, curtains, bed sheets, area rug, floor lamp, wall clock, picture frame, storage boxes, shower curtain, bath towels, blanket, candles, mirror, coat rack, shoe rack, night light, vase | hearthloom, casavielle, nidaro, linnetto, woolbury, lampeva | queen, king, grey, white, velvet, blackout, weighted, round, modern, boho, rustic | for bedroom, for living room, for kids room, for bathroom, for small spaces
tools | drill set, screwdriver set, tape measure, ladder, tool box, paint brushes, work gloves, wood glue, level, wrench set, sander, nail gun, extension cord, utility knife, safety glasses, saw blades | hammerfjord, boltwick, drivaro, ironpell, craftmoor, torqen | cordless, 20v, magnetic, heavy duty, folding, 6 inch, 12 inch, metric, insulated, professional | for wood, for metal, for drywall, for home, for women
baby | stroller, diapers, baby monitor, high chair, baby bottles, crib sheets, car seat, baby carrier, pacifier, play mat, baby blanket, teething toys, swaddle, diaper bag, bibs, night light | tinybrook, cuddlenne, lullamoor, babbola, pramello, snugwick | newborn, organic, size 2, size 4, portable, muslin, silicone, convertible, twin, neutral | for boys, for girls, for travel, for newborns, for twins
food | green tea, coffee beans, dark chocolate, olive oil, protein powder, almonds, hot sauce, pasta, granola, honey, dried mango, popcorn, oat milk, gummy bears, soy sauce, trail mix, instant noodles | mundola, teabrook, savarro, nutwyn, choquita, grainmere | organic, gluten free, sugar free, vegan, spicy, bulk, whole, roasted, unsalted, low carb | for kids, for gifts, for baking, variety pack, family size
car | car mats, seat covers, dash cam, tire inflator, windshield wipers, car vacuum, jump starter, air freshener, sun shade, car wax, trunk organizer, tire gauge, steering wheel cover, bike rack, tow strap | motorwyn, autavero, wheelby, gleamaro, dashfeld, roadmere | black, leather, universal, waterproof, cordless, 12v, heavy duty, magnetic, beige, portable | for suv, for truck, for winter, for pets, for sedan
""".strip()

_ZH = """
鞋靴 | 跑步鞋, 凉鞋, 雨靴, 登山鞋, 帆布鞋, 拖鞋, 小白鞋, 高跟鞋, 短靴, 板鞋, 老爹鞋, 豆豆鞋, 鞋垫, 鞋带 | 栎途, 履禾, 云蹬, 麓步, 朵履 | 透气, 防滑, 真皮, 厚底, 轻便, 黑色, 白色, 大码, 百搭, 软底 | 女, 男, 儿童, 学生, 夏季
服装 | 连衣裙, 冲锋衣, 卫衣, 牛仔裤, 毛衣, 工装裤, 衬衫, 睡衣, 打底裤, 羽绒服, 短袖, 针织衫, 半身裙, 风衣, 袜子, 马甲 | 岚织, 澄衣, 素棠, 檐纱, 砚绒, 禾裳 | 宽松, 显瘦, 纯棉, 加绒, 复古, 黑色, 长袖, 大码, 碎花, 高腰 | 女, 男, 女童, 男童, 中老年, 秋冬
园艺 | 花盆, 花架, 浇水壶, 园艺剪, 营养土, 种子, 多肉, 绿萝, 水管, 太阳能灯, 遮阳网, 喷壶, 花肥, 爬藤架 | 苔檐, 绿栖, 禾圃, 芽里, 蔓舍 | 大号, 小号, 陶瓷, 塑料, 壁挂, 悬挂, 自动, 加厚, 长方形, 创意 | 阳台, 室内, 庭院, 种菜, 家用
厨具 | 炒锅, 平底锅, 菜刀, 砧板, 电饭煲, 烧水壶, 保温杯, 饭盒, 碗碟套装, 空气炸锅, 调料罐, 筷子, 电磁炉, 榨汁机, 烤盘, 漏勺 | 釜里, 灶禾, 炊栎, 味屿, 锅朵 | 不锈钢, 不粘, 陶瓷, 玻璃, 竹木, 迷你, 多功能, 大容量, 硅胶, 加厚 | 家用, 宿舍, 一人, 婴儿, 办公室
玩具 | 积木, 拼图, 毛绒玩具, 遥控车, 娃娃屋, 泡泡机, 风筝, 桌游, 轨道车, 磁力片, 水枪, 沙滩玩具, 滑板车, 彩泥, 魔方 | 咕噜堡, 豆丁屿, 积朵, 木呆呆, 童栎 | 益智, 大颗粒, 木质, 电动, 磁性, 发光, 大号, 迷你, 仿真, 可拆装 | 儿童, 男孩, 女孩, 三岁, 六岁, 成人
手机配件 | 手机壳, 充电器, 钢化膜, 充电宝, 车载支架, 数据线, 无线充电器, 自拍杆, 手机挂绳, 手机支架, 散热器, 内存卡 | 芯屿, 极檐, 线禾, 壳朵, 充途 | 透明, 磁吸, 快充, 超薄, 防摔, 液态硅胶, 两米, 黑色, 卡通, 加长 | 女, 男, 车用, 桌面, 平板
数码影音 | 蓝牙耳机, 头戴式耳机, 蓝牙音箱, 麦克风, 电子琴, 吉他弦, 尤克里里, 投影仪, 录音笔, 相机包, 三脚架, 耳机套 | 聆屿, 鸣檐, 音朵, 弦禾, 澜声 | 降噪, 无线, 入耳式, 运动, 迷你, 高音质, 白色, 黑色, 便携, 专业 | 学生, 跑步, 家用, 初学者, 直播
电脑办公 | 机械键盘, 无线鼠标, 笔记本支架, 电脑包, 显示器支架, 摄像头, 扩展坞, 移动硬盘, 鼠标垫, 打印纸, 墨盒, 电竞椅, 路由器, 台灯 | 键禾, 屏屿, 码朵, 格栎, 联檐 | 静音, 无线, 人体工学, 超大, 白色, 青轴, 红轴, 高清, 护眼, 双频 | 游戏, 办公, 学生, 家用, 女生
美妆护肤 | 面霜, 口红, 洗发水, 防晒霜, 面膜, 精华液, 粉底液, 眼影盘, 护手霜, 香水, 指甲油, 睫毛膏, 洗面奶, 身体乳, 化妆刷 | 栖颜, 砚雪, 棠语, 澄肌, 露禾 | 保湿, 美白, 控油, 敏感肌, 哑光, 防水, 氨基酸, 清爽, 小样, 滋润 | 女, 男, 学生, 孕妇, 婴儿
宠物 | 猫砂, 狗粮, 猫粮, 猫爬架, 狗窝, 牵引绳, 猫抓板, 宠物包, 鱼缸, 鸟笼, 猫罐头, 狗零食, 逗猫棒, 宠物梳, 饮水机 | 喵栎, 汪屿, 爪朵, 绒檐, 毛禾 | 大号, 豆腐, 无尘, 冻干, 自动, 可拆洗, 耐咬, 便携, 四季通用, 除臭 | 幼猫, 幼犬, 大型犬, 小型犬, 成猫
运动户外 | 瑜伽垫, 哑铃, 跳绳, 羽毛球拍, 篮球, 泳镜, 运动水壶, 帐篷, 睡袋, 登山杖, 露营椅, 头灯, 骑行手套, 弹力带, 护膝 | 麓野, 峦途, 汗屿, 行栎, 跃禾 | 加厚, 可调节, 超轻, 防水, 专业, 折叠, 双人, 充气, 防滑, 速干 | 女, 男, 儿童, 初学者, 家用
文具 | 笔记本, 中性笔, 便利贴, 文件夹, 铅笔盒, 荧光笔, 钢笔, 手账本, 订书机, 橡皮, 书皮, 日历, 白板, 胶带, 圆规 | 墨檐, 纸屿, 砚禾, 简朵, 页栎 | 可擦, 活页, 黑色, 彩色, 大容量, 简约, 磁性, 方格, 加厚, 卡通 | 小学生, 考试, 办公, 女生, 老师
家居 | 抱枕, 窗帘, 四件套, 地毯, 落地灯, 挂钟, 相框, 收纳箱, 浴帘, 毛巾, 毛毯, 香薰, 镜子, 鞋架, 小夜灯, 花瓶 | 檐下, 栖舍, 屿眠, 素栎, 絮禾 | 遮光, 加厚, 北欧, 奶油风, 圆形, 可折叠, 灰色, 大号, 简约, 免打孔 | 卧室, 客厅, 宿舍, 儿童房, 卫生间
母婴 | 婴儿车, 纸尿裤, 奶瓶, 安全座椅, 婴儿背带, 安抚奶嘴, 爬行垫, 口水巾, 包被, 妈咪包, 儿童餐椅, 辅食碗, 玩水玩具, 连体衣 | 糯屿, 囡朵, 小檐, 抱禾, 芽栎 | 新生儿, 大号, 纯棉, 可折叠, 硅胶, 轻便, 防胀气, 超薄, 四季, 双胞胎 | 男宝, 女宝, 一岁, 外出, 夏季
零食 | 坚果, 黑巧克力, 牛肉干, 薯片, 果干, 绿茶, 咖啡豆, 蜂蜜, 饼干, 方便面, 辣条, 麦片, 海苔, 蛋黄酥, 酸梅汤 | 嚼屿, 果栎, 茶檐, 味禾, 甜朵 | 无糖, 低脂, 独立包装, 整箱, 原味, 香辣, 有机, 散装, 手工, 进口 | 儿童, 孕妇, 办公室, 送礼, 早餐
汽车用品 | 脚垫, 座套, 行车记录仪, 充气泵, 雨刮器, 车载吸尘器, 遮阳挡, 车载香水, 后备箱收纳, 方向盘套, 车衣, 洗车水枪, 头枕 | 驰屿, 途栎, 轮禾, 驭檐, 辙朵 | 全包围, 真皮, 通用, 高清, 无线, 防水, 加厚, 黑色, 四季, 便携 | 女, 男, 冬季, 货车, 轿车
""".strip()

# Words that one gender searches more often, so that the profile is a signal.
LEANS = {
    "for women": "F", "for girls": "F", "for men": "M", "for boys": "M",
    "女": "F", "女生": "F", "女孩": "F", "女童": "F", "男": "M", "男孩": "M", "男童": "M",
}  # fmt: skip


def categories(language: str) -> list[Category]:
    """The shelves in `language` ("en" or "zh"). Raises UserError for any other."""
    texts = {"en": _EN, "zh": _ZH}
    if language not in texts:
        raise UserError(
            f"simulate language: expected one of {', '.join(sorted(texts))}, found {language!r}; "
            "for another language give a file of queries"
        )
    shelves = []
    for line in texts[language].splitlines():
        name, *columns = (part.strip() for part in line.split("|"))
        shelves.append(Category(name, *(tuple(w.strip() for w in c.split(",")) for c in columns)))
    return shelves


def phrases(category: Category, language: str) -> Iterator[tuple[str, ...]]:
    """Every query of one shelf as its words in typing order; shorter ones first, none twice.

    Words are catalogue entries ("garden hose", "for kids"), to which tastes refer, not single tokens.
    """
    c = category
    yield from ((p,) for p in c.products)
    yield from ((b,) for b in c.brands)
    yield from itertools.product(c.brands, c.products)
    yield from itertools.product(c.kinds, c.products)
    if language == "zh":
        yield from ((p, u) for p, u in itertools.product(c.products, c.uses))
        yield from ((p, k, u) for p, k, u in itertools.product(c.products, c.kinds, c.uses))
    else:
        yield from itertools.product(c.products, c.uses)
        yield from itertools.product(c.kinds, c.products, c.uses)
    yield from itertools.product(c.brands, c.kinds, c.products)
    yield from itertools.product(c.brands, c.products, c.uses)
    yield from (
        (first, second, product)
        for first, second in itertools.permutations(c.kinds, 2)
        if first < second
        for product in c.products
    )


def write_phrase(words: tuple[str, ...], language: str) -> str:
    """The words as they are typed: with spaces in English, without in Chinese."""
    return ("" if language == "zh" else " ").join(words)
