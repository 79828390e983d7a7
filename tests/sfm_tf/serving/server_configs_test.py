"""What is written must parse as the messages of TensorFlow Serving and fit the public schemas."""

import http.server
import importlib.resources
import json
import pathlib
import subprocess
import threading

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from sfm_tf.errors import SfmError
from sfm_tf.serving import server_configs
from sfm_tf.serving.server_configs import Batching

DEPLOYMENT = pathlib.Path(server_configs.__file__).parents[2] / "deployment"
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


def test_the_models_are_those_asked_for_in_their_latest_version():
    model_server_config_pb2 = pytest.importorskip(
        "tensorflow_serving.config.model_server_config_pb2"
    )
    text = server_configs.models_config(["digits", "cifar-10.v2"])
    parsed = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    first, second = parsed.model_config_list.config
    assert (first.name, first.base_path) == ("digits", "/models/digits")
    assert (second.name, second.base_path) == ("cifar-10.v2", "/models/cifar-10.v2")
    assert {each.model_platform for each in (first, second)} == {"tensorflow"}
    policy = first.model_version_policy
    assert policy.WhichOneof("policy_choice") == "latest"
    assert policy.latest.num_versions == 1


@pytest.mark.parametrize("base_path", ["gs://bucket/models", '/a "quoted" \\ path\nof two lines'])
def test_any_base_path_survives(base_path):
    model_server_config_pb2 = pytest.importorskip(
        "tensorflow_serving.config.model_server_config_pb2"
    )
    text = server_configs.models_config(["digits"], base_path)
    parsed = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    assert parsed.model_config_list.config[0].base_path == f"{base_path}/digits"


def test_batches_are_as_asked_and_the_largest_is_the_last_allowed():
    parsed = parse("BatchingParameters", server_configs.batching_config(Batching((1, 8, 32), 500)))
    assert list(parsed.allowed_batch_sizes) == [1, 8, 32]
    assert parsed.max_batch_size.value == 32
    assert parsed.batch_timeout_micros.value == 500
    assert parsed.num_batch_threads.value == 2
    assert parsed.max_enqueued_batches.value == 100


def test_metrics_are_reported():
    parsed = parse("MonitoringConfig", server_configs.monitoring_config())
    assert parsed.prometheus_config.enable
    assert parsed.prometheus_config.path == "/monitoring/prometheus/metrics"


def test_writes_the_files_for_the_models_that_are_there(tmp_path):
    for folder in ("digits/1", "cifar10/3", "empty", ".hidden/1", "notes/text"):
        (tmp_path / folder).mkdir(parents=True)
    assert server_configs.write_server_configs(tmp_path) == ["cifar10", "digits"]
    # A second time, the files themselves are no models.
    assert server_configs.write_server_configs(tmp_path) == ["cifar10", "digits"]
    assert sorted(path.name for path in tmp_path.glob("*.config")) == [
        "batching.config",
        "models.config",
        "monitoring.config",
    ]
    assert '"/models/digits"' in (tmp_path / "models.config").read_text()
    parsed = parse("BatchingParameters", (tmp_path / "batching.config").read_text())
    assert list(parsed.allowed_batch_sizes) == [1, 2, 4, 8, 16, 32, 64]
    assert parse("MonitoringConfig", (tmp_path / "monitoring.config").read_text())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Batching(()), r"Invalid allowed_batch_sizes \[\]; expected growing positive"),
        (lambda: Batching((8, 1)), r"Invalid allowed_batch_sizes \[8, 1\]"),
        (lambda: Batching((0, 1)), r"Invalid allowed_batch_sizes \[0, 1\]"),
        (lambda: Batching((1, 1)), r"Invalid allowed_batch_sizes \[1, 1\]"),
        (lambda: Batching(threads=0), "Invalid threads 0; expected at least 1"),
        (lambda: Batching(timeout_microseconds=-1), "Invalid timeout_microseconds -1; expected"),
        (lambda: server_configs.models_config([]), "No models to serve; export one first"),
        (lambda: server_configs.models_config(['a" b']), "Invalid model_name 'a\" b'"),
        (lambda: server_configs.monitoring_config("metrics"), "Invalid path of the metrics"),
    ],
)
def test_what_a_server_would_refuse_is_refused(make, message):
    with pytest.raises(SfmError, match=message):
        make()


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
    compose["services"]["cpu"]["helthcheck"] = {}
    with pytest.raises(jsonschema.ValidationError, match="helthcheck"):
        jsonschema.validate(compose, schema)


def test_the_kubernetes_file_fits_the_schema_of_kubernetes():
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    found = documents("kubernetes.yaml")
    assert [document["kind"] for document in found] == ["Deployment", "Service"]
    for document in found:
        kubernetes_validate.validate(document, "1.30", strict=True)
    found[0]["spec"]["template"]["spec"]["containers"][0]["arguments"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(found[0], "1.30", strict=True)


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
    written = {
        f"/models/{name}"
        for name in (
            server_configs.MODELS_FILE,
            server_configs.BATCHING_FILE,
            server_configs.MONITORING_FILE,
        )
    }
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


class _Metadata(http.server.BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802
        known = self.path == "/v1/models/sfm_defended/metadata"
        body = b'{"model_spec": {}}' if known else b'{"error": "Servable not found"}'
        self.send_response(200 if known else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.mark.parametrize(("model", "healthy"), [("sfm_defended", True), ("another", False)])
def test_the_health_check_tells_a_loaded_model_from_one_that_is_not(model, healthy):
    (compose,) = documents("compose.yaml")
    kind, *command = compose["services"]["cpu"]["healthcheck"]["test"]
    assert kind == "CMD"
    server = http.server.HTTPServer(("127.0.0.1", 0), _Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        # As Compose does: variables are filled in, and two dollars are one.
        filled = [
            part.replace("${MODEL_NAME:-sfm_defended}", model)
            .replace("$$", "$")
            .replace("/8501", f"/{server.server_port}")
            for part in command
        ]
        assert (subprocess.run(filled, timeout=20, check=False).returncode == 0) == healthy
    finally:
        server.shutdown()
        server.server_close()
    assert subprocess.run(filled, stderr=subprocess.DEVNULL, check=False).returncode != 0


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
