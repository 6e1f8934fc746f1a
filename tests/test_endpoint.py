"""Where may be published, and what an endpoint is."""

import pytest

from streampose.endpoint import Endpoint, to_connect_to, to_publish_at
from streampose.errors import UsageError
from streampose.publish import Publisher


@pytest.mark.parametrize(
    ("text", "shown", "loopback"),
    [
        ("tcp://localhost:5555", "tcp://127.0.0.1:5555", True),
        ("tcp://127.0.0.1:5555", "tcp://127.0.0.1:5555", True),
        ("tcp://127.3.2.1:1", "tcp://127.3.2.1:1", True),
        ("tcp://[::1]:5555", "tcp://[::1]:5555", True),
        ("tcp://0.0.0.0:5555", "tcp://0.0.0.0:5555", False),
        ("tcp://*:5555", "tcp://*:5555", False),
        ("tcp://192.168.1.2:65535", "tcp://192.168.1.2:65535", False),
        ("tcp://[2001:db8::1]:5555", "tcp://[2001:db8::1]:5555", False),
        ("tcp://camera-host.local:5555", "tcp://camera-host.local:5555", False),
    ],
)
def test_an_endpoint_is_read(text, shown, loopback):
    endpoint = to_publish_at(text, keys=False, insecure=True)
    assert (str(endpoint), endpoint.is_loopback) == (shown, loopback)


@pytest.mark.parametrize(
    "text",
    [
        "", "127.0.0.1:5555", "tcp://127.0.0.1", "tcp://127.0.0.1:0", "tcp://127.0.0.1:99999", "tcp://u:secret@h:1",
        "ipc://x", "http://host:1", "tcp://:5555", "tcp://a b:1", "tcp://127.0.0.1:5555/x",
    ],
)  # fmt: skip
def test_what_is_none(text):
    for check in (to_connect_to, lambda text: to_publish_at(text, keys=False, insecure=True)):
        with pytest.raises(UsageError, match=r"an endpoint is tcp://HOST:PORT") as caught:
            check(text)
        assert "secret" not in str(caught.value)


def test_a_subscriber_needs_a_host_and_a_port():
    assert to_connect_to("tcp://cam:5555") == Endpoint("cam", 5555)
    for text in ("tcp://*:5555", "tcp://127.0.0.1:*"):
        with pytest.raises(UsageError):
            to_connect_to(text)


def test_other_machines_need_keys_or_a_word(caplog):
    with pytest.raises(UsageError, match=r"other machines reach it.*--keys DIR.*--insecure"):
        Publisher("tcp://0.0.0.0:*", model="lite")
    with Publisher("tcp://0.0.0.0:*", model="lite", insecure=True):
        assert "is open: whoever reaches it can read the stream" in caplog.text
