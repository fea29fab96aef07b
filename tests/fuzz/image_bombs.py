"""Small files that cost a naive reader minutes or gigabytes.

A case returns the word listed with it in `CASES`: "errors" for files that must be
refused, "codes" for large but valid ones.
"""

from __future__ import annotations

import base64
import io
import re
import struct
import sys
import zlib
from functools import lru_cache
from importlib.util import find_spec

from PIL import Image

from sk_cnncodes import ImageError, Preprocessing
from sk_cnncodes.images.decode import decode_content
from sk_cnncodes.images.safe_open import MAX_PIXELS
from tests.fuzz.image_seeds import encoded, oriented
from tests.fuzz.mutations import png_chunk

LARGEST_SQUARE = int(MAX_PIXELS**0.5)  # side of the largest allowed square
SMALL = Image.new("RGB", (8, 8), "gray")


def blank_png(width: int, height: int, kind: int = 2, before: bytes = b"") -> bytes:
    """A PNG of zeros; `kind` 2 is RGB, 6 is RGBA."""
    channels = {0: 1, 2: 3, 6: 4}[kind]
    pack = zlib.compressobj(1)
    rows = max(1, 2**20 // (channels * width + 1))
    block = bytes(rows * (channels * width + 1))
    data = [pack.compress(block) for _ in range(height // rows)]
    data += [pack.compress(bytes((height % rows) * (channels * width + 1)))]
    data += [pack.flush()]
    head = struct.pack(">LLBBBBB", width, height, 8, kind, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", head),
            before,
            png_chunk(b"IDAT", b"".join(data)),
            png_chunk(b"IEND", b""),
        ]
    )


def blank_jpeg(
    width: int, height: int, channels: int = 1, progressive: bool = False
) -> bytes:
    """A gray JPEG of few bits: no difference to the block before, and no more.

    The progressive one has a scan of the means of the blocks only.
    """

    def segment(marker: int, data: bytes) -> bytes:
        return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data

    zero = b"\1" + bytes(15) + b"\0"  # one code, of length 1, for the symbol 0
    sampling = b"".join(bytes([i, 0x11, 0]) for i in range(channels))
    tables = b"".join(bytes([i, 0]) for i in range(channels))
    last = b"\0" if progressive else b"\x3f"
    size = struct.pack(">BHHB", 8, height, width, channels)
    blocks = -(-width // 8) * -(-height // 8) * channels
    return b"".join(
        [
            b"\xff\xd8",
            segment(0xDB, b"\0" + b"\1" * 64),
            segment(0xC2 if progressive else 0xC0, size + sampling),
            segment(0xC4, b"\0" + zero),
            segment(0xC4, b"\x10" + zero),
            segment(0xDA, bytes([channels]) + tables + b"\0" + last + b"\0"),
            bytes(-(-blocks // (8 if progressive else 4))),
            b"\xff\xd9",
        ]
    )


def claiming_png() -> bytes:
    """Claims 10,000 x 10,000 pixels in its header."""
    head = struct.pack(">LLBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    rest = [png_chunk(b"IDAT", zlib.compress(bytes(999))), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + b"".join(rest)


def turned_png() -> bytes:
    """As many transparent pixels as allowed, with an EXIF rotation."""
    exif = oriented(6).tobytes()[6:]
    return blank_png(LARGEST_SQUARE, LARGEST_SQUARE, 6, before=png_chunk(b"eXIf", exif))


def large_webp() -> bytes:
    """Small frames on the largest allowed canvas."""
    frame, other = Image.new("RGBA", (8, 8), "red"), Image.new("RGBA", (8, 8), "blue")
    file = io.BytesIO()
    frame.save(file, "WEBP", save_all=True, append_images=[other])
    content = bytearray(file.getvalue())
    content[24:27] = content[27:30] = (LARGEST_SQUARE - 1).to_bytes(3, "little")
    return bytes(content)


def many_exif_segments() -> bytes:
    content = encoded(SMALL, "JPEG")
    segment = b"\xff\xe1" + (12).to_bytes(2, "big") + b"Exif\0\0AAAA"
    return content[:2] + segment * 400_000 + content[2:]


def many_segments() -> bytes:
    content = encoded(SMALL, "JPEG")
    return content[:2] + b"\xff\xfe\0\2" * 2_000_000 + content[2:]


@lru_cache(maxsize=1)
def many_scans() -> bytes:
    """The last scan of a progressive JPEG, repeated 1,000 times: 0.2 MB."""
    image = Image.new("RGB", (4000, 4000), "gray")
    content = encoded(image, "JPEG", progressive=True)
    last = [m.start() for m in re.finditer(rb"\xff\xda", content)][-1]
    scan = content[last:-2]
    return content[:-2] + scan * 1000 + b"\xff\xd9"


def many_chunks() -> bytes:
    return blank_png(8, 8, before=png_chunk(b"prVt", b"") * 1_500_000)


def many_blocks() -> bytes:
    content = encoded(SMALL.quantize(4), "GIF")
    start = 13 + (3 << ((content[10] & 7) + 1))
    return content[:start] + b"!\xfe\1A\0" * 3_000_000 + content[start:]


def wide_gif_frame() -> bytes:
    """A frame that is far larger than its screen."""
    content = bytearray(encoded(SMALL.quantize(4), "GIF"))
    frame = content.index(b",", 13)
    content[frame + 5 : frame + 9] = (60_000).to_bytes(2, "little") * 2
    return bytes(content)


def tiff(tags: list[tuple[int, int, int, int]], data: bytes = b"") -> bytes:
    """A little-endian TIFF: data from byte 8, then the tags."""
    entries = b"".join(struct.pack("<HHLL", *tag) for tag in sorted(tags))
    start = 8 + len(data)
    count = struct.pack("<H", len(tags))
    return b"II*\0" + struct.pack("<L", start) + data + count + entries + bytes(4)


def tiff_tags(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Tags of an uncompressed gray image."""
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1)]
    return [*tags, (262, 3, 1, 1), (277, 3, 1, 1)]


def shared_tags() -> bytes:
    """40,000 tags that share the same half megabyte of values."""
    values = [(1000 + i, 1, 500_000, 8) for i in range(40_000)]
    strips = [(273, 4, 1, 8), (278, 3, 1, 8), (279, 4, 1, 64)]
    return tiff([*tiff_tags(8, 8), *strips, *values], bytes(500_000))


def shared_exif_tags() -> bytes:
    return blank_png(8, 8, before=png_chunk(b"eXIf", shared_tags()))


def many_tiles() -> bytes:
    """A million tiles of one pixel."""
    count = 1_000_000
    tiles = [(322, 3, 1, 1), (323, 3, 1, 1), (324, 4, count, 8), (325, 4, count, 8)]
    return tiff([*tiff_tags(1000, 1000), *tiles], bytes(4 * count))


def long_tiff() -> bytes:
    """Two billion rows in one strip."""
    strips = [(273, 4, 1, 8), (278, 4, 1, 2**31 - 1), (279, 4, 1, 2**32 - 1)]
    return tiff([*tiff_tags(1, 2**31 - 1), *strips], bytes(64))


def run_length_bmp(width: int, height: int, data: bytes) -> bytes:
    head = struct.pack("<LllHHLLLLLL", 40, width, height, 1, 8, 1, 0, 0, 0, 0, 0)
    start = 54 + 1024
    size = struct.pack("<LLL", start + len(data), 0, start)
    return b"BM" + size + head + bytes(1024) + data


def skipping_bmp() -> bytes:
    """Skips of no pixels: Pillow reads each of them."""
    return run_length_bmp(8, 8, b"\0\2\0\0" * 2**25)


def short_runs_bmp() -> bytes:
    """Half as many runs of a pixel as allowed; an empty line, which Pillow refuses."""
    row = b"\1\7" * 1024 + b"\0\0"
    return run_length_bmp(1024, 1024, b"\0\0" + row * 1023 + b"\0\1")


def slow_bmp() -> bytes:
    """Run-length encoding, whose line ends are filled byte by byte."""
    width, height = 100_000, 500
    colors = bytes(1024)
    data = bytes(2 * height) + b"\0\1"
    start = 14 + 40 + len(colors)
    values = [40, width, height, 1 | 8 << 16, 1, len(data), 0, 0, 256, 0]
    head = b"BM" + struct.pack("<LLL", start + len(data), 0, start)
    return head + struct.pack("<10L", *values) + colors + data


def slow_ppm() -> bytes:
    """An unusual maximum value, which Pillow rescales pixel by pixel."""
    return b"P6 4000 4000 100\n" + bytes(3 * 4000 * 4000)


def plain_ppm() -> bytes:
    return b"P2 4000 4000 9\n" + b"7 " * 4000 * 4000


# Gray images of 7,200 and of 16,384 pixels a side, compressed, since encoders would
# take minutes.
_LARGE_AVIF = (
    b"c-muNU{FXasVqn=%S>Yc0uY^>nP!-qnV9D5Xy^zOdYzkElE?r7iWw<6MNl?FL1uCZ0~+8f$SlbPv"
    b"lxL`E;A=T8N_h`@fjhajKT~IOcQ}@jm*rvG`LzRASaax%1bOWFm%q($p_n&m03_!0HnP$3zGAJv`"
    b"A)gK`O*L83hPt5Gcs3$OMTnb8v6~DW1eKL+3_&up;5){G6h^<eUni$-E3~4L~9B%z|8)pMVZyVPt"
    b"A%0lI2tZc1W_5Ca#N{bvjNgWo0yT*x$PV3pwil+^P6|NoEa4;UEy&Y#kY-EC35UuE+S_I=HFau?~"
    b"GRL`4Oq?vZ_sHfg^uk+_xss#4U<NC6tnTNS!LgAs)A6tLRCw{E^tyErJ`g-~rJ^mj{1@a|kKeE<-"
    b"IwkPWU^mYTuX%I6CEif{5d9^B(R_m8oF5&m-Rb+XpUuA0&fL?mac9#f)%&||E|S0hvLf&J?`$7ms"
    b"=6&`a2rRxa038*;(m+"
)
_LARGE_HEIC = (
    b"c-rmNO=uHA6ae5inRMMki~(DU5~Q&edPu;4N>63AMGyoPJ>(>f+blb{+YD<cQF=&46h%eoMXLChs"
    b"~}V_3PL>yy%Z5IdMJn&5k!h2L{ZZ>Nh|10(1(;a+3dV|`<8F_9cBR_?Nv@{zoe>wBUE1A#GxvB0H"
    b"P3<Dn)3Ij6W7cD=}#0R^Yd>RRv|&1S1Xz{NWIj?HM5V5l?+ejeD)7$#&zS6kA#O6K>vwNv$g3&yt"
    b"r)M;hmcO1ov8Phr`xh}#(67&JwXm*88o(E!*WNAZpxM<hhEX$oYkLSo6Im{Y`SxjjPsdf^JBGmuQ"
    b"pF7Dg5b75|H_moL*GACgl!#nH|@gzE%u=)|&=$3<M+zqOjUk_FdQ(fwWF16n--P`^{N~@|e8EM<*"
    b"DSMO-R~v{uiBH939Gmeq94lh~avui7y^hr2&C823pWnTx@4d8nhyT1jH2LMz+h^By1+VUV3x8*t`"
    b"JU-(+&<)7@5~=P(|Y@Ve02JEPLF2KPamYf;7x71`}h(GC1JujM<jt1Psu2#*Ql&Sfl3;BO(cmN5h"
    b"O1VLDpR&C^=6AZP`u)Wp5Edhv$f(vO@&TQf)#_q7D22ky9sfe$Y6vh{ll?kwdd>$Fnrd0}`g=2o3"
    b"X|gt7M1Ff`xobzL;fMH+^vX$=y_9#~UMVNEetnPG;RKW65cVTKuIm|=z)W|(1y8D^Mah8bp<VTKu"
    b"Im|=z)W|(2-e`5N3mjU4J2+;"
)
_LARGE_JXL = (
    b"c-s5V_3MEogD?jpL(TyOo<j<E4kDAXKy-xBfW?7f6pf-$G>V2lVn`R(U}OkbXmo1F!P7hE>D!k?_"
    b"}t!c?n2mYF{X}5Q#~grJe;T6P@MXZnTd76SIeXO4!T$TdGY0^^9L3diKI`RX`dId_bRvcx5pkfJa"
    b"C`sobUomA;a9IGb`VHDbTVvU}M-cq4t@M+D6s?{3=q+4%7ON<y3up<MVy}-~ZyCN>iFVA2dkFNQe"
    b"K|GGKUdcge!5AO7fSdh<Q(@skuS)YOz3bpkD%z{1$T-TDq>y}Ss*dh;2)%nC2J*k{j||4=zido=J"
    b"z<9{^pN8^9g+973aI>Q6W&Ts2$6}nUey$-4rIPmoK-Y(K-P;eB!no~blgje2z!Gl3$VN6Z|!vQk}"
    b"fhPSUNw?Si>)Wwp%fSQtroB4A7^d*o>;2v144+p|QAy~18kDW=o}h7j#}3<92WIgsEbm{p#q!jjT"
    b"|do@r2LnDSD4UO%3j0g9;mQ|`HNju4U2BVMzf=F(hRP@m=~yh5U7gSn!6}|CSxA^(uOH=*BixGC#"
    b"(|jl@eiCS~J;3;@e>%-(veS=E^Tzt}T{(7{nZKK0)fJVx*9Y#{>n(CKgTv<DNW&0RuZjgA@Z4FhT"
    b"(n6flFpFp^|}0#+zsg93IC7)FvDP{0WVTu{Ib0>em>2MTzhfDa1zL0}*x0jZ0GPy"
)
_HUGE_AVIF = (
    b"c-muNU{FXasVqn=%S>Yc0uY^>nP!-qnV9D5Xy^zOdYzkElE?r7iWw<6MNl?FL1uCZ0~+8f$SlbPv"
    b"lxL`E;A=T8N_h`@fjhajKT~I+;Tv+MrLMS8eFXukdw*;<t3IG7&_<Y<b&<X$}A`<0Mg!>1<Cn9S|"
    b"qc$AQfVr0~9j|6l7Lpf*8yk92`K3C$Y@XxzQf1NH{q^rzkHurvhj)F9TZxP)IzpAQ$E*pu<=gnVM"
    b"OEu2RcQNh}d!;NrIbUjP69-z6+2QVvEvViL>(Gj>{KE}Ic?gMlIJ{3*TI-4@mRRW|Qn-`9L6cahF"
    b"X^}LBinrZirdg@L0T78uF%x;UtkrQfstdbW-wPermw#hqfpq!B~KQv>mgzI$9kh<_4ncaNm$(h@I"
    b"mPtQunxQez%l_Y}xufQenmcOlsJWx&j+#4a?x?w==2BuVjf@2Vplmjd"
)


def boxed(packed: bytes, side: int) -> bytes:
    """One of the large images, said to have another size."""
    content = zlib.decompress(base64.b85decode(packed))
    size = side.to_bytes(4, "big") * 2
    return re.sub(rb"(ispe\0{4}).{8}", lambda at: at[1] + size, content, flags=re.S)


def many_items() -> bytes:
    """65,000 images at one place, each after a thousand empty units."""
    content = boxed(_LARGE_AVIF, 7200)
    places = b"".join(struct.pack(">HHHLL", i, 0, 1, 0, 2000) for i in range(65_000))
    head = struct.pack(">4sLHH", b"iloc", 0, 0x4400, 65_000)
    table = struct.pack(">L", 4 + len(head + places)) + head + places
    kinds = b"".join(
        struct.pack(">L4sLHH4sB", 21, b"infe", 2 << 24, i, 0, b"av01", 0)
        for i in range(65_000)
    )
    info = struct.pack(">L4sLH", 14 + len(kinds), b"iinf", 0, 65_000) + kinds
    meta = struct.pack(">L4sL", 12 + len(table + info), b"meta", 0) + table + info
    return content[:32] + meta + b"\x12\0" * 1000


CASES = [
    (claiming_png, "errors"),
    (turned_png, "codes"),
    (large_webp, "codes"),
    (many_exif_segments, "codes"),
    (many_segments, "errors"),
    (many_scans, "errors"),
    (lambda: blank_jpeg(10_192, 10_192), "codes"),
    (lambda: blank_jpeg(10_193, 10_213), "errors"),
    (lambda: blank_jpeg(7_700, 7_704, 3, progressive=True), "codes"),
    (lambda: blank_jpeg(11_776, 11_776, 3, progressive=True), "errors"),
    (lambda: blank_jpeg(40_000, 40_000, 3), "codes"),
    (many_chunks, "errors"),
    (many_blocks, "errors"),
    (wide_gif_frame, "errors"),
    (shared_tags, "codes"),
    (shared_exif_tags, "codes"),
    (many_tiles, "errors"),
    (long_tiff, "errors"),
    (slow_bmp, "errors"),
    (skipping_bmp, "errors"),
    (short_runs_bmp, "codes"),
    (slow_ppm, "errors"),
    (plain_ppm, "errors"),
    (lambda: blank_png(1_000_000, 1), "codes"),
    (lambda: blank_png(1, 1_000_000), "codes"),
    (lambda: blank_png(1_000_001, 1), "errors"),
    (lambda: boxed(_LARGE_AVIF, 7200), "codes"),
    (lambda: boxed(_HUGE_AVIF, 16_384), "errors"),
    (lambda: boxed(_HUGE_AVIF, 8), "errors"),
    (lambda: boxed(_HUGE_AVIF, 7200), "errors"),
    (many_items, "errors"),
]
if find_spec("pillow_heif"):  # the extra `heif`
    CASES += [
        (lambda: boxed(_LARGE_HEIC, 7200), "codes"),
        (lambda: boxed(_LARGE_HEIC, 8), "errors"),
        (lambda: boxed(_LARGE_HEIC, 30_000), "errors"),
    ]
if find_spec("pillow_jxl"):  # the extra `jxl`
    large = zlib.decompress(base64.b85decode(_LARGE_JXL))
    # The second one says that it has 2^30 rows.
    CASES += [(lambda: large, "codes"), (lambda: b"\xff\x0a\xfe" + large[3:], "errors")]
PREPROCESSINGS = [
    Preprocessing(crop_size=(224, 224), resize_size=256),
    Preprocessing(crop_size=(224, 224), resize_size=200),
    Preprocessing(crop_size=(224, 224), resize="squash", interpolation="lanczos"),
]


def check(case: int) -> str:
    """Decode and prepare the file of a case."""
    make, expected = CASES[case // len(PREPROCESSINGS)]
    preprocessing, name = PREPROCESSINGS[case % len(PREPROCESSINGS)], make.__name__
    try:
        least = preprocessing.min_decode_size
        decoded = decode_content(make(), name, case, min_decode_size=least)
        pixels = preprocessing.apply(decoded.rgb)
    except ImageError as error:
        assert expected == "errors", str(error)
        assert str(error).startswith(f"image {case} ({name!r}): "), str(error)
        return "errors"
    assert expected == "codes", f"{name} should be refused"
    assert pixels.shape == (224, 224, 3)
    return "codes"


if __name__ == "__main__":
    print(check(int(sys.argv[1])))
