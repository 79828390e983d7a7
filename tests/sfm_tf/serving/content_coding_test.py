import gzip
import zlib

import numpy as np
import pytest

from sfm_tf.serving.content_coding import open_decoder
from sfm_tf.serving.prediction_service import Code, RequestError

# Half of it packs well, and the other half not at all.
DATA = bytes(300_000) + np.random.default_rng(0).bytes(300_000)


def raw_deflate(data):
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


def unpack(coding, body, size):
    decoder = open_decoder(coding)
    chunks = [body[start : start + size] for start in range(0, len(body), size)]
    pieces = [piece for chunk in chunks for piece in decoder.decode(chunk)]
    decoder.finish()
    return pieces


@pytest.mark.parametrize("size", [1, 10_000, 10**7])
@pytest.mark.parametrize(
    ("coding", "pack"),
    [
        ("gzip", gzip.compress),
        (" X-GZip ", gzip.compress),
        ("deflate", zlib.compress),
        ("Deflate", raw_deflate),
        ("", bytes),
        ("identity", bytes),
    ],
    ids=["gzip", "old name", "deflate", "without a header", "none", "identity"],
)
def test_a_body_unpacks_to_what_was_packed_however_it_is_cut(coding, pack, size):
    data = DATA if size > 1 else DATA[299_000:301_000]
    for sent in (data, b""):
        assert b"".join(unpack(coding, pack(sent), size)) == sent
    assert unpack(coding, b"", size) == []


def test_a_bomb_unpacks_piece_by_piece():
    pieces = open_decoder("gzip").decode(gzip.compress(bytes(10**8)))
    assert len(next(pieces)) <= 2**16
    assert max(map(len, pieces)) <= 2**16


@pytest.mark.parametrize(
    ("coding", "body", "message"),
    [
        ("gzip", b"no gzip", "no gzip data: .*header"),
        ("gzip", gzip.compress(DATA)[:-1], "no gzip data: no end"),
        ("gzip", gzip.compress(b"a") + gzip.compress(b"b"), "no gzip data: data after its end"),
        ("gzip", gzip.compress(DATA)[:-8] + bytes(8), "no gzip data: .*check"),
        ("deflate", zlib.compress(DATA) + b"more", "no deflate data: data after its end"),
        ("deflate", b"\xff" * 100, "no deflate data: "),
    ],
    ids=["other bytes", "cut", "two streams", "wrong checksum", "more", "no deflate"],
)
@pytest.mark.parametrize("size", [7, 10**7])
def test_damaged_bodies_are_refused(coding, body, message, size):
    with pytest.raises(RequestError, match=message) as caught:
        unpack(coding, body, size)
    assert caught.value.code is Code.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "coding",
    ["br", "zstd", "compress", "gzip, gzip", "x" * 10**5],
    ids=["br", "zstd", "compress", "twice", "long"],
)
def test_other_codings_are_refused(coding):
    with pytest.raises(RequestError, match="Unknown Content-Encoding '") as caught:
        open_decoder(coding)
    assert caught.value.code.http == 415
    assert len(str(caught.value)) < 200
