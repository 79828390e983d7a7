import http

import grpc
import pytest

from sfm_tf.serving.request_errors import Code, RequestError

HTTP_NAMES = {
    "INVALID_ARGUMENT": "BAD_REQUEST",
    "NOT_FOUND": "NOT_FOUND",
    "FAILED_PRECONDITION": "BAD_REQUEST",
    "UNIMPLEMENTED": "NOT_IMPLEMENTED",
    "INTERNAL": "INTERNAL_SERVER_ERROR",
    "UNAVAILABLE": "SERVICE_UNAVAILABLE",
}


def test_numbers_are_those_of_grpc_and_of_http():
    for name, http_name in HTTP_NAMES.items():
        assert Code[name].grpc == grpc.StatusCode[name].value[0]
        assert Code[name].http == http.HTTPStatus[http_name]
    assert Code.TOO_LARGE.grpc == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert Code.TOO_LARGE.http == http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    assert {*HTTP_NAMES, "TOO_LARGE"} == set(Code.__members__)


def test_a_refusal_has_a_code_and_one_line():
    error = RequestError(Code.NOT_FOUND, "no such model")
    assert (error.code, str(error)) == (Code.NOT_FOUND, "no such model")
    assert str(RequestError(Code.NOT_FOUND, "ab" * 5000)) == "ab" * 250


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
