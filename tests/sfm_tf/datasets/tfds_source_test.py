import hashlib
import http.server
import io
import os
import pathlib
import socket
import tarfile
import threading
import time

import numpy as np
import pytest
import scipy.io
import tensorflow_datasets as tfds

from sfm_tf.datasets import tfds_source
from sfm_tf.datasets.settings import DataConfig
from sfm_tf.datasets.tfds_source import open_source, prepare, read_records
from sfm_tf.errors import SfmError

_IMAGES = np.random.default_rng(0).integers(0, 256, (20, 4, 5, 3), dtype=np.uint8)


class Numbered(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Images without ids."""

    VERSION = tfds.core.Version("1.0.0")
    error = None

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(4, 5, 3)),
            "label": tfds.features.ClassLabel(num_classes=20),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index, image in enumerate(_IMAGES):
            yield index, {"image": image, "label": index}
        if self.error:
            raise self.error


class Named(Numbered, skip_registration=True):
    """Images with ids."""

    def _info(self):
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(4, 5, 3)),
            "label": tfds.features.ClassLabel(num_classes=20),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _generate_examples(self):
        for index, image in enumerate(_IMAGES):
            yield index, {"id": f"é{index}", "image": image, "label": index}


def test_reads_what_was_prepared(tmp_path):
    builder = Named(data_dir=tmp_path)
    prepare(builder)
    records = list(read_records(builder, "train"))
    assert sorted(record.label for record in records) == list(range(20))
    for record in records:
        assert record.key == f"é{record.label}"
        np.testing.assert_array_equal(record.image, _IMAGES[record.label])


def test_keys_without_ids_are_positions(tmp_path):
    builder = Numbered(data_dir=tmp_path)
    prepare(builder)
    first, again = (list(read_records(builder, "train")) for _ in range(2))
    assert [record.key for record in first] == [f"train_{index:06d}" for index in range(20)]
    assert [record.label for record in first] == [record.label for record in again]


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (OSError(28, "No space left on device"), SfmError, "Cannot prepare dataset 'numbered'"),
        (SfmError("Image cat.png is odd."), SfmError, "^Image cat.png is odd.$"),
        (KeyError("defect"), KeyError, "defect"),
    ],
)
def test_failure_leaves_nothing_prepared(tmp_path, monkeypatch, error, raised, message):
    monkeypatch.setattr(Numbered, "error", error)
    builder = Numbered(data_dir=tmp_path)
    with pytest.raises(raised, match=message):
        prepare(builder)
    assert not builder.is_prepared()
    assert [path for path in pathlib.Path(tmp_path).rglob("*") if path.is_file()] == []


_SVHN_URL = "http://ufldl.stanford.edu/housenumbers/"
_CIFAR_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"


def _expect_archives(monkeypatch, dataset, paths_by_url):
    """Makes TensorFlow Datasets take these files for the original archives."""
    infos = {
        url: tfds.download.checksums.UrlInfo(
            size=tfds.core.units.Size(path.stat().st_size),
            checksum=hashlib.sha256(path.read_bytes()).hexdigest(),
            filename=path.name,
        )
        for url, path in paths_by_url.items()
    }
    monkeypatch.setattr(tfds.builder_cls(dataset), "url_infos", infos)


def _images(seed, count):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def _write_svhn(folder):
    """The layout of the original files: images along the last axis, digit 0 labelled 10."""
    folder.mkdir(parents=True)
    paths = {}
    for seed, split in enumerate(("train", "test", "extra")):
        path = folder / f"{split}_32x32.mat"
        labels = (np.arange(12) % 10 + 1).reshape(-1, 1).astype(np.uint8)
        scipy.io.savemat(path, {"X": np.moveaxis(_images(seed, 12), 0, -1), "y": labels})
        paths[_SVHN_URL + path.name] = path
    return paths


def _write_cifar(folder):
    """The layout of the original archive: a label byte, then 1,024 bytes of each channel."""
    folder.mkdir(parents=True)
    path = folder / "cifar-10-binary.tar.gz"
    names = [*(f"data_batch_{index}.bin" for index in range(1, 6)), "test_batch.bin"]
    with tarfile.open(path, "w:gz") as file:
        for seed, name in enumerate(names):
            rows = [
                bytes([label]) + image.transpose(2, 0, 1).tobytes()
                for label, image in enumerate(_images(seed, 10))
            ]
            _add(file, name, b"".join(rows))
        _add(file, "batches.meta.txt", "\n".join(tfds_source.CLASS_NAMES["cifar10"]).encode())
    return {_CIFAR_URL: path}


def _add(file, name, data):
    info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
    info.size = len(data)
    file.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("folder", ["downloads/manual", "downloads"])
def test_svhn_from_its_original_files(tmp_path, monkeypatch, folder):
    paths = _write_svhn(tmp_path / folder)
    _expect_archives(monkeypatch, "svhn_cropped", paths)
    source = open_source(DataConfig(dataset="svhn_cropped", data_dir=os.fspath(tmp_path)))

    assert source.class_names == tuple("0123456789")
    assert (source.height, source.width, source.channels) == (32, 32, 3)
    assert set(source.splits) == {"train", "test"}
    for seed, split in enumerate(("train", "test")):
        records = {record.key: record for record in source.splits[split]()}
        assert sorted(records) == [f"{split}_{index:06d}" for index in range(12)]
        for index, image in enumerate(_images(seed, 12)):
            record = records[f"{split}_{index:06d}"]
            assert record.label == (index % 10 + 1) % 10
            np.testing.assert_array_equal(record.image, image)


def test_cifar10_from_its_original_archive_and_then_without(tmp_path, monkeypatch):
    paths = _write_cifar(tmp_path / "images" / "downloads" / "manual")
    _expect_archives(monkeypatch, "cifar10", paths)
    monkeypatch.setenv("HOME", os.fspath(tmp_path))
    config = DataConfig(dataset="cifar10", data_dir="~/images")
    open_source(config)
    for path in paths.values():
        path.unlink()
    source = open_source(config)

    assert source.class_names[8] == "ship"
    records = {record.key: record for record in source.splits["train"]()}
    assert sorted(records) == [f"train_{index:05d}" for index in range(50)]
    for seed in range(5):
        for label, image in enumerate(_images(seed, 10)):
            record = records[f"train_{seed * 10 + label:05d}"]
            assert record.label == label
            np.testing.assert_array_equal(record.image, image)
    assert len(list(source.splits["test"]())) == 10


def test_archive_with_other_contents_is_refused(tmp_path):
    _write_cifar(tmp_path / "downloads" / "manual")
    config = DataConfig(dataset="cifar10", data_dir=os.fspath(tmp_path))
    with pytest.raises(SfmError, match="archive of dataset 'cifar10' is not the original") as info:
        open_source(config)
    assert "\n" not in str(info.value)
    assert not tfds.builder("cifar10", data_dir=os.fspath(tmp_path)).is_prepared()


def _expect_at(monkeypatch, url):
    info = tfds.download.checksums.UrlInfo(
        size=tfds.core.units.Size(1), checksum="0", filename="images.tar.gz"
    )
    monkeypatch.setattr(tfds.builder_cls("cifar10"), "url_infos", {url: info})


def test_unreachable_host_fails_fast_and_says_what_to_put_where(tmp_path, monkeypatch):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    _expect_at(monkeypatch, f"http://127.0.0.1:{port}/images.tar.gz")
    start = time.monotonic()
    message = (
        f"Dataset 'cifar10' is not prepared in {tmp_path} and 127.0.0.1:{port} cannot be reached "
        rf"\(.*\); put images.tar.gz into {tmp_path}/downloads/manual"
    )
    with pytest.raises(SfmError, match=message):
        open_source(DataConfig(dataset="cifar10", data_dir=os.fspath(tmp_path)))
    assert time.monotonic() - start < 10


def test_silent_host_fails_fast(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_source, "_CONNECTION_TIMEOUT_SECONDS", 0.2)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        _expect_at(monkeypatch, f"http://127.0.0.1:{listener.getsockname()[1]}/images.tar.gz")
        with pytest.raises(SfmError, match="cannot be reached"):
            open_source(DataConfig(dataset="cifar10", data_dir=os.fspath(tmp_path)))


class _Refusing(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):  # noqa: N802
        self.send_error(403)

    def log_message(self, *arguments):
        pass


def test_host_that_answers_with_an_error_is_reachable(tmp_path, monkeypatch):
    """Some hosts refuse HEAD; the download itself then decides."""
    server = http.server.HTTPServer(("127.0.0.1", 0), _Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    calls = []

    def stop(builder, archives):
        calls.append(archives)
        raise SfmError("reached")

    monkeypatch.setattr(tfds_source, "prepare", stop)
    _expect_at(monkeypatch, f"http://127.0.0.1:{server.server_port}/images.tar.gz")
    try:
        with pytest.raises(SfmError, match="reached"):
            open_source(DataConfig(dataset="cifar10", data_dir=os.fspath(tmp_path)))
    finally:
        server.shutdown()
        server.server_close()
    assert calls == [None]
