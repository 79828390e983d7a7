import dataclasses
import importlib.resources
import json
import pathlib
import shutil
import struct
import subprocess

import keras
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from tensorflow_serving.config import model_server_config_pb2

from sfm_tf.audit.blessing import Blessing
from sfm_tf.errors import SfmError
from sfm_tf.models.defended_model import DefendedModel
from sfm_tf.preprocessors.chain import parse_preprocessor
from sfm_tf.preprocessors.draws import KeyedDraws, RepeatableFreshDraws
from sfm_tf.serving import pushing
from sfm_tf.serving.pushing import EvaluatedModel, PushedModel, push_blessed
from sfm_tf.serving.saved_model import export_saved_model
from sfm_tf.serving.settings import ExportConfig
from tests.json_server import json_server

DEPLOYMENT = pathlib.Path(pushing.__file__).parents[2] / "deployment"
FILES = ("compose.yaml", "kubernetes.yaml", "kserve.yaml")
IMAGE = "tensorflow/serving:2.20.0"

# Fields and numbers of tensorflow_serving/servables/tensorflow/session_bundle_config.proto and
# tensorflow_serving/config/monitoring_config.proto, which tensorflow-serving-api leaves out.
_PROTOS = """
name: "serving_test.proto" package: "serving_test" syntax: "proto3"
message_type { name: "Int64Value" field { name: "value" number: 1 type: TYPE_INT64 } }
message_type {
  name: "BatchingParameters"
  field { name: "max_batch_size" number: 1 type: TYPE_MESSAGE
          type_name: ".serving_test.Int64Value" }
  field { name: "batch_timeout_micros" number: 2 type: TYPE_MESSAGE
          type_name: ".serving_test.Int64Value" }
  field { name: "max_enqueued_batches" number: 3 type: TYPE_MESSAGE
          type_name: ".serving_test.Int64Value" }
  field { name: "num_batch_threads" number: 4 type: TYPE_MESSAGE
          type_name: ".serving_test.Int64Value" }
  field { name: "allowed_batch_sizes" number: 6 type: TYPE_INT64 label: LABEL_REPEATED }
  field { name: "pad_variable_length_inputs" number: 7 type: TYPE_BOOL }
}
message_type {
  name: "PrometheusConfig"
  field { name: "enable" number: 1 type: TYPE_BOOL }
  field { name: "path" number: 2 type: TYPE_STRING }
}
message_type {
  name: "MonitoringConfig"
  field { name: "prometheus_config" number: 1 type: TYPE_MESSAGE
          type_name: ".serving_test.PrometheusConfig" }
}
"""


def parse(name: str, text: str):
    """Returns the message `name` that a server reads from `text`; unknown fields are errors."""
    file = text_format.Parse(_PROTOS, descriptor_pb2.FileDescriptorProto())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    kind = message_factory.GetMessageClass(pool.FindMessageTypeByName(f"serving_test.{name}"))
    return text_format.Parse(text, kind())


@pytest.mark.parametrize(
    "base_path", ["/models", "gs://bucket/models", '/a "quoted" \\ path\nof two lines']
)
def test_the_models_are_those_asked_for_in_their_latest_version(base_path):
    text = pushing.models_config(["digits", "cifar-10.v2"], base_path)
    parsed = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    for model, name in zip(parsed.model_config_list.config, ["digits", "cifar-10.v2"], strict=True):
        assert (model.name, model.base_path) == (name, f"{base_path}/{name}")
        assert model.model_platform == "tensorflow"
        assert model.model_version_policy.WhichOneof("policy_choice") == "latest"
        assert model.model_version_policy.latest.num_versions == 1


def test_writes_the_files_for_the_models_that_are_there(tmp_path):
    for folder in ("digits/1", "cifar10/3", "empty", ".hidden/1", "notes/text"):
        (tmp_path / folder).mkdir(parents=True)
    assert pushing.write_server_configs(tmp_path) == ["cifar10", "digits"]
    # A second time, the files themselves are no models.
    assert pushing.write_server_configs(tmp_path) == ["cifar10", "digits"]
    assert sorted(path.name for path in tmp_path.glob("*.config")) == [
        "batching.config",
        "models.config",
        "monitoring.config",
    ]
    assert '"/models/digits"' in (tmp_path / "models.config").read_text()
    batching = parse("BatchingParameters", (tmp_path / "batching.config").read_text())
    assert list(batching.allowed_batch_sizes) == [1, 2, 4, 8, 16, 32, 64]
    assert batching.max_batch_size.value == 64
    assert batching.batch_timeout_micros.value == 2000
    assert batching.num_batch_threads.value == 2
    assert batching.max_enqueued_batches.value == 100
    monitoring = parse("MonitoringConfig", (tmp_path / "monitoring.config").read_text())
    assert monitoring.prometheus_config.enable
    assert monitoring.prometheus_config.path == "/monitoring/prometheus/metrics"


@pytest.mark.parametrize(
    ("names", "message"),
    [([], "No models to serve; export one first"), (['a" b'], "Invalid model_name 'a\" b'")],
)
def test_what_a_server_would_refuse_is_refused(names, message):
    with pytest.raises(SfmError, match=message):
        pushing.models_config(names)


def documents(name: str) -> list[dict]:
    yaml = pytest.importorskip("yaml")
    return list(yaml.safe_load_all((DEPLOYMENT / name).read_text(encoding="utf-8")))


def test_the_compose_file_fits_the_schema_of_compose():
    jsonschema = pytest.importorskip("jsonschema")
    pytest.importorskip("check_jsonschema")
    schemas = importlib.resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    schema = json.loads((schemas / "compose-spec.json").read_text(encoding="utf-8"))
    (compose,) = documents("compose.yaml")
    jsonschema.validate(compose, schema)


def test_the_kubernetes_file_fits_the_schema_of_kubernetes():
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    found = documents("kubernetes.yaml")
    assert [document["kind"] for document in found] == ["Deployment", "Service"]
    for document in found:
        kubernetes_validate.validate(document, "1.30", strict=True)


def check_model(value, kind: str, models) -> None:
    """Raises where `value` has a field that the generated class `kind` does not know."""
    listed = kind.startswith("list[")
    kind = kind.removeprefix("list[").removesuffix("]")
    cls = getattr(models, kind.split(".")[-1], None)
    if cls is None or not hasattr(cls, "attribute_map"):
        return
    for each in value if listed else [value]:
        fields = {json_name: name for name, json_name in cls.attribute_map.items()}
        for key, inner in each.items():
            if key not in fields:
                raise KeyError(f"{kind} has no field {key}")
            check_model(inner, cls.openapi_types[fields[key]], models)


def test_the_kserve_file_has_only_fields_of_an_inference_service():
    models = pytest.importorskip("kserve.models")
    (service,) = documents("kserve.yaml")
    assert (service["apiVersion"], service["kind"]) == (
        "serving.kserve.io/v1beta1",
        "InferenceService",
    )
    check_model(service, "V1beta1InferenceService", models)
    service["spec"]["predictor"]["model"]["modelformat"] = {}
    with pytest.raises(KeyError, match="V1beta1ModelSpec has no field modelformat"):
        check_model(service, "V1beta1InferenceService", models)


def test_the_compose_file_serves_on_loopback_from_a_folder_it_cannot_write():
    (compose,) = documents("compose.yaml")
    assert {name: each["profiles"] for name, each in compose["services"].items()} == {
        "cpu": ["cpu"],
        "gpu": ["gpu"],
    }
    for name, service in compose["services"].items():
        assert {port["host_ip"] for port in service["ports"]} == {"127.0.0.1"}
        assert sorted(port["target"] for port in service["ports"]) == [8500, 8501]
        (volume,) = service["volumes"]
        assert (volume["target"], volume["read_only"]) == ("/models", True)
        tag = service["image"].replace("${TF_SERVING_VERSION:-2.20.0}", "2.20.0")
        assert tag == IMAGE + {"cpu": "", "gpu": "-gpu"}[name]
    (device,) = compose["services"]["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])


def test_the_servers_are_given_the_files_that_are_written():
    names = (pushing.MODELS_FILE, pushing.BATCHING_FILE, pushing.MONITORING_FILE)
    written = {f"/models/{name}" for name in names}
    (compose,) = documents("compose.yaml")
    commands = [service["command"] for service in compose["services"].values()]
    deployment, service = documents("kubernetes.yaml")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    commands.append(container["args"])
    for command in commands:
        values = dict(argument.removeprefix("--").split("=", 1) for argument in command)
        assert {value for key, value in values.items() if key.endswith("_file")} == written
        assert values["enable_batching"] == "true"
    assert container["image"] == IMAGE
    assert [mount["readOnly"] for mount in container["volumeMounts"]] == [True]
    assert service["spec"]["type"] == "ClusterIP"
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    named = {port["name"] for port in container["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} == named


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (404, False)])
def test_the_health_check_tells_a_loaded_model_from_one_that_is_not(status, healthy):
    (compose,) = documents("compose.yaml")
    kind, *command = compose["services"]["cpu"]["healthcheck"]["test"]
    assert kind == "CMD"
    with json_server((status, b"{}")) as (address, requests):
        # As Compose does: variables are filled in, and two dollars are one.
        filled = [
            part.replace("${MODEL_NAME:-sfm_defended}", "digits")
            .replace("$$", "$")
            .replace("/8501", f"/{address.rpartition(':')[2]}")
            for part in command
        ]
        assert (subprocess.run(filled, timeout=20, check=False).returncode == 0) == healthy
    assert [path for _, path, _ in requests] == ["/v1/models/digits/metadata"]
    assert subprocess.run(filled, stderr=subprocess.DEVNULL, check=False).returncode != 0


IMAGES = np.random.default_rng(0).random((5, 6, 6, 3)).astype(np.float32)
LABELS = np.array([0, 1, 0, 1, 0])
BLESSED = Blessing(True, ("All is well.",))
NOT_BLESSED = Blessing(False, ("Accuracy is 0.1, below 0.5.", "The white box was not run."))
CARD = "# Model card\n\nNot for äny decision.\n"


@pytest.fixture(scope="module")
def evaluated():
    classifier = keras.Sequential(
        [keras.Input((6, 6, 3)), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    return EvaluatedModel(
        defended=DefendedModel(classifier, preprocessor=parse_preprocessor("bit_depth_4")),
        class_names=["cat", "dog"],
        images=IMAGES,
        labels=LABELS,
        blessing=BLESSED,
        manifest={"artifact": {"fingerprint": "ab12"}, "events": []},
        model_card=CARD,
    )


@pytest.fixture(scope="module")
def exported(evaluated, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    export_saved_model(evaluated.defended, evaluated.class_names, folder)
    return folder


@pytest.fixture(autouse=True)
def verified(monkeypatch):
    """Stands in for the fresh process, and keeps what it was asked."""
    asked = []

    def verify(*arguments, **options):
        asked.append((arguments, options))

    monkeypatch.setattr(pushing, "verify_saved_model", verify)
    return asked


@pytest.fixture
def exported_before(exported, monkeypatch):
    """Stands in for the export, which traces the model for seconds; keeps the precisions."""
    asked = []

    def copy(defended, class_names, folder, precision):
        shutil.copytree(exported, folder)
        asked.append(precision)

    monkeypatch.setattr(pushing, "export_saved_model", copy)
    return asked


def push(folder: pathlib.Path, evaluated: EvaluatedModel, **settings: object) -> PushedModel:
    config = ExportConfig(serving_dir=str(folder / "serving"), model_name="model", **settings)
    staging = folder / f"staging{len(list(folder.iterdir()))}"
    staging.mkdir()
    return push_blessed(evaluated, config, staging)


def test_a_blessed_model_is_verified_and_pushed(tmp_path, evaluated, verified):
    pushed = push(tmp_path, evaluated)
    assert pushed.folder == str(tmp_path / "serving" / "model" / "1")
    assert pushed.version == 1
    (((staged, defended, images, labels), options),) = verified
    assert (staged / "saved_model.pb").is_file()
    assert (defended, options) == (evaluated.defended, {"same_arithmetic": True})
    assert images is IMAGES
    assert labels is LABELS
    signature = tf.saved_model.load(pushed.folder).signatures["serving_default"]
    expected = evaluated.defended(IMAGES).numpy()
    np.testing.assert_allclose(signature(images=IMAGES)["logits"], expected, atol=1e-5)


@pytest.mark.usefixtures("exported_before")
def test_what_belongs_to_the_model_travels_with_it(tmp_path, evaluated):
    pushed = push(tmp_path, evaluated)
    extra = pathlib.Path(pushed.folder) / "assets.extra"
    assert (extra / "MODEL_CARD.md").read_text(encoding="utf-8") == CARD
    assert json.loads((extra / "manifest.json").read_text()) == {
        "artifact": {"fingerprint": "ab12"},
        "events": [],
        "blessed": True,
        "reasons": ["All is well."],
    }
    # Three signatures at 1, 2, 4, 8, 16, 32 and 64 images.
    assert pushed.warm_up_requests == 21
    requests = tf.data.TFRecordDataset(str(extra / "tf_serving_warmup_requests"))
    assert len(list(requests)) == 21
    assert 'name: "model"' in (tmp_path / "serving" / "models.config").read_text()


def test_a_model_that_is_not_blessed_is_refused_with_every_reason(tmp_path, evaluated):
    with pytest.raises(SfmError) as caught:
        push(tmp_path, dataclasses.replace(evaluated, blessing=NOT_BLESSED))
    message = str(caught.value)
    assert "NOT_BLESSED" in message
    assert all(reason in message for reason in NOT_BLESSED.reasons)
    assert not (tmp_path / "serving").exists()


@pytest.mark.usefixtures("exported_before")
def test_it_is_pushed_where_that_is_allowed_and_says_so(tmp_path, evaluated):
    not_blessed = dataclasses.replace(evaluated, blessing=NOT_BLESSED)
    pushed = push(tmp_path, not_blessed, allow_not_blessed=True)
    manifest = pathlib.Path(pushed.folder) / "assets.extra" / "manifest.json"
    assert json.loads(manifest.read_text())["blessed"] is False
    assert push(tmp_path, evaluated).version == 2


@pytest.mark.usefixtures("exported_before")
def test_an_export_that_fails_its_verification_is_not_pushed(tmp_path, evaluated, monkeypatch):
    def fail(*arguments, **options):
        raise SfmError("a label differs")

    monkeypatch.setattr(pushing, "verify_saved_model", fail)
    with pytest.raises(SfmError, match="a label differs"):
        push(tmp_path, evaluated)
    assert not (tmp_path / "serving").exists()


def test_another_precision_is_exported_and_verified_as_such(
    tmp_path, evaluated, verified, exported_before
):
    push(tmp_path, evaluated, precision="bfloat16")
    assert exported_before == ["bfloat16"]
    assert verified[0][1] == {"same_arithmetic": False}


@pytest.mark.usefixtures("exported_before")
def test_no_more_versions_are_kept_than_asked_for(tmp_path, evaluated):
    for _ in range(3):
        pushed = push(tmp_path, evaluated, keep_versions=2)
    folders = (tmp_path / "serving" / "model").glob("[0-9]*")
    assert sorted(path.name for path in folders) == ["2", "3"]
    assert pushed.version == 3


@pytest.mark.usefixtures("exported_before")
def test_a_model_goes_to_an_object_store_without_configuration(tmp_path, evaluated, monkeypatch):
    seen = []
    monkeypatch.setattr(pushing, "publish", lambda staged, folder: seen.append(folder) or 7)
    config = ExportConfig(serving_dir="gs://bucket/models", model_name="model")
    pushed = push_blessed(evaluated, config, tmp_path)
    assert seen == ["gs://bucket/models/model"]
    assert pushed.folder == "gs://bucket/models/model/7"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["saved_model"]


KEY = bytes.fromhex("00ff10a7c3d2e1f0aabbccddeeff0123")


@pytest.fixture(scope="module")
def random_model(evaluated):
    """Total variation minimisation by the public key of an evaluation."""
    chain = parse_preprocessor("total_variation_50_30")
    defended = DefendedModel(evaluated.defended.classifier, preprocessor=chain)
    return dataclasses.replace(evaluated, defended=defended)


def answers(pushed: PushedModel) -> np.ndarray:
    signature = tf.saved_model.load(pushed.folder).signatures["serving_default"]
    return np.stack([signature(images=tf.constant(IMAGES))["logits"] for _ in range(2)])


def test_a_model_that_draws_is_served_with_a_secret_key_that_nothing_else_holds(
    tmp_path, random_model, verified
):
    key_file = tmp_path / "key"
    key_file.write_text(f"{KEY.hex()}\n")
    ours = push(tmp_path, random_model, draw_key_file=str(key_file))
    first, second = answers(ours)
    np.testing.assert_array_equal(first, second)
    expected = random_model.defended.with_draws(KeyedDraws(KEY))
    np.testing.assert_allclose(first, expected(IMAGES), atol=1e-4)
    # Compared with the model of the same key.
    (((_, compared, *_), _),) = verified
    assert compared.preprocessor.draws == KeyedDraws(KEY)
    key_file.unlink()
    spellings = [KEY, KEY.hex().encode(), *map(str, struct.unpack("<2q", KEY)), repr(KEY)]
    for path in filter(pathlib.Path.is_file, tmp_path.rglob("*")):
        content = path.read_bytes()
        for spelling in spellings:
            written = spelling if isinstance(spelling, bytes) else spelling.encode()
            assert path.name == "saved_model.pb" or written not in content

    # Without a file, a new key: other draws than those with ours or the public one.
    others, _ = answers(push(tmp_path, random_model))
    for known in (first, random_model.defended(IMAGES).numpy()):
        assert np.abs(others - known).max() > 1e-3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file or directory"),
        (b"", "of 0 characters"),
        (KEY.hex().encode()[:-1], "of 31 characters"),
        (b"secret" * 6, "of 36 characters"),
        (b"g" * 32, "of 32 characters"),
        (KEY + b"\xff", "it is no text"),
        (b"a" * 10_000, "of 4096 characters"),
    ],
    ids=["missing", "empty", "short", "long", "no digits", "bytes", "huge"],
)
def test_a_file_without_a_key_is_refused_in_a_line_that_shows_nothing_of_it(
    tmp_path, content, message
):
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SfmError, match="32 hexadecimal digits") as caught:
        pushing.draw_key(str(path))
    told = str(caught.value)
    assert f"--draw_key_file={path}" in told
    assert message in told
    assert "\n" not in told
    assert "secret" not in told
    assert KEY.hex()[:-1] not in told


@pytest.mark.parametrize(
    ("chain", "reason"), [("none", "draws nothing"), ("total_variation_50_30", "draws afresh")]
)
def test_a_key_that_nothing_follows_from_is_refused(tmp_path, evaluated, chain, reason):
    preprocessor = parse_preprocessor(chain)
    defended = DefendedModel(evaluated.defended.classifier, preprocessor=preprocessor)
    model = dataclasses.replace(evaluated, defended=defended.with_draws(RepeatableFreshDraws()))
    (tmp_path / "key").write_text(KEY.hex())
    with pytest.raises(SfmError, match=reason):
        push(tmp_path, model, draw_key_file=str(tmp_path / "key"))
    assert not (tmp_path / "serving").exists()


def test_keys_are_read_in_either_case_and_else_made_anew(tmp_path):
    path = tmp_path / "key"
    path.write_text(f"{KEY.hex().upper()}\n")
    assert pushing.draw_key(str(path)) == KEY
    made = {pushing.draw_key("") for _ in range(5)}
    assert len(made) == 5
    assert {len(key) for key in made} == {16}
