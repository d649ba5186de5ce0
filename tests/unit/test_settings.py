import os
from pathlib import Path
from typing import get_args

import pytest

from processor.settings import Settings, SettingsError, load
from server.processes.listening_ports import split_bind
from server.settings import ServerSettings


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("config", *ServerSettings.model_fields):
        monkeypatch.delenv(f"SPENDSTREAM_{name.upper()}", raising=False)


def test_the_defaults_are_the_published_ones(tmp_path: Path) -> None:
    settings = load(ServerSettings)
    assert (settings.http_bind, settings.grpc_bind) == ("127.0.0.1:8080", "127.0.0.1:50051")
    assert settings.data_dir == tmp_path / ".spendstream"
    assert (settings.broker, settings.handling, settings.dedupe_horizon, settings.retention) == (
        "sqlite://",
        "partial",
        0,
        0,
    )


def test_flags_win_over_variables_and_these_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "spendstream.toml").write_text('handling = "strict"\nmax_lag = 7\nflush_interval = 0.2\n')
    monkeypatch.setenv("SPENDSTREAM_HANDLING", "lenient")
    monkeypatch.setenv("SPENDSTREAM_MAX_LAG", "8")
    settings = load(ServerSettings, max_lag="9", handling=None)
    assert (settings.max_lag, settings.handling, settings.flush_interval) == (9, "lenient", 0.2)
    monkeypatch.setenv("SPENDSTREAM_CONFIG", str(tmp_path / "other.toml"))
    (tmp_path / "other.toml").write_text("flush_interval = 0.3\n")
    assert load(Settings).flush_interval == 0.3


def test_a_variable_counts_in_any_case_and_as_what_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("spendstream_Max_Lag", "8")
    monkeypatch.setenv("SPENDSTREAM_NO_SETTING", "1")
    assert load(ServerSettings).max_lag == 8
    monkeypatch.setenv("SPENDSTREAM_PARTITIONS", "")
    with pytest.raises(SettingsError, match="SPENDSTREAM_PARTITIONS: "):
        load(Settings)


def test_a_line_of_the_file_that_is_no_setting_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "spendstream.toml").write_text('max_lag = 7\r\nself = 1\nbroker = "sqlite://"\n[other]\nbroker = 1\n')
    assert load(ServerSettings).max_lag == 7


def test_all_faults_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "HTTP_BIND": "8080",
        "HANDLING": "odd",
        "PARTITIONS": "0",
        "BROKER": "kafka:localhost",
        "RETENTION": "-5",
        "BOOTSTRAP_KEY": "secret",
        "LOG_LEVEL": "loud",
    }.items():
        monkeypatch.setenv(f"SPENDSTREAM_{name}", value)
    with pytest.raises(SettingsError) as wrong:
        load(ServerSettings)
    text = str(wrong.value)
    for name in ("HTTP_BIND", "HANDLING", "PARTITIONS", "BROKER", "RETENTION", "BOOTSTRAP_KEY", "LOG_LEVEL"):
        assert f"SPENDSTREAM_{name}: " in text
    assert len(text.splitlines()) == 8


def test_half_of_tls_and_a_broken_file_are_faults(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="go together"):
        load(ServerSettings, tls_cert="cert.pem")
    for broken in (b"not toml", b'broker = "\xff"'):
        (tmp_path / "spendstream.toml").write_bytes(broken)
        with pytest.raises(SettingsError, match=r"cannot read spendstream\.toml"):
            load(Settings)


def test_a_fault_of_several_settings_is_said_of_none_and_in_no_words_of_a_library() -> None:
    with pytest.raises(SettingsError) as wrong:
        load(ServerSettings, tls_cert="cert.pem")
    text = "SPENDSTREAM_TLS_CERT and SPENDSTREAM_TLS_KEY go together: give both or neither"
    assert str(wrong.value) == f"wrong settings:\n  {text}"
    with pytest.raises(SettingsError) as wrong:
        load(ServerSettings, bootstrap_key="lqt_")
    assert str(wrong.value) == "wrong settings:\n  SPENDSTREAM_BOOTSTRAP_KEY: must be lqt_ and 64 hex characters"


def test_a_file_that_may_not_be_read_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ended the program with a traceback."""
    (tmp_path / "spendstream.toml").touch()

    def refuse(path: Path, **_: object) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(SettingsError, match=r"cannot read spendstream\.toml: .*Permission denied"):
        load(Settings)


@pytest.mark.parametrize(
    ("text", "size"),
    [("1.5GiB", 3 << 29), ("9007199254740993", 2**53 + 1), ("512 mib", 512 << 20), ("1" + 400 * "0", 10**400)],
    ids=["fraction", "beyond doubles", "with a blank", "400 digits"],
)
def test_sizes_are_exact(text: str, size: int) -> None:
    """Large ones lost their last digits, and some ended the program with a traceback."""
    assert load(Settings, store_min_free=text).store_min_free == size


PATHS = [
    name
    for name, field in ServerSettings.model_fields.items()
    if Path in (*get_args(field.annotation), field.annotation)
]


def test_the_settings_that_name_files_and_directories() -> None:
    assert PATHS == ["data_dir", "store_dir", "kafka_ca", "kafka_cert", "kafka_key", "tls_cert", "tls_key"]


@pytest.mark.parametrize("value", ["", " "], ids=["empty", "blank"])
@pytest.mark.parametrize("name", PATHS)
def test_a_name_of_a_file_or_directory_that_is_empty_is_refused(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was the current directory, wherever that happened to be."""
    says = f"SPENDSTREAM_{name.upper()}: must not be empty: name a file or directory, or leave the setting out"
    monkeypatch.setenv(f"SPENDSTREAM_{name.upper()}", value)
    with pytest.raises(SettingsError, match=says):
        load(ServerSettings)
    monkeypatch.delenv(f"SPENDSTREAM_{name.upper()}")
    with pytest.raises(SettingsError, match=says):
        load(ServerSettings, **{name: value})
    (tmp_path / "spendstream.toml").write_text(f'{name} = "{value}"\n')
    with pytest.raises(SettingsError, match=says):
        load(ServerSettings)


def test_names_of_files_and_directories_begin_at_home_after_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of certificates did not, and where there is no such user the program ended with a traceback."""
    monkeypatch.setenv("HOME", "/home/ada")
    given = {name: f"~/{name}" for name in PATHS}
    settings = load(ServerSettings, **given)
    assert {name: str(getattr(settings, name)) for name in PATHS} == {name: f"/home/ada/{name}" for name in PATHS}
    with pytest.raises(SettingsError, match="SPENDSTREAM_DATA_DIR: there is no home directory of ~nobody-of-that-name"):
        load(ServerSettings, data_dir="~nobody-of-that-name/x")
    with pytest.raises(SettingsError, match="SPENDSTREAM_PRICES: there is no home directory of ~nobody-of-that-name"):
        load(ServerSettings, prices="~nobody-of-that-name/x.toml")
    assert load(ServerSettings, data_dir="a~b").data_dir.name == "a~b"


@pytest.mark.parametrize("named", ["none.toml", ".", "~/none.toml", "~nobody-of-that-name/x", "", "pipe"])
def test_a_named_file_that_is_not_there_is_a_fault(named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of its settings were left out, with a warning from some of the processes."""
    monkeypatch.setenv("HOME", str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "spendstream.toml").write_text("flush_interval = 0.3\n")
    monkeypatch.setenv("SPENDSTREAM_CONFIG", named)
    with pytest.raises(SettingsError) as wrong:
        load(Settings)
    assert str(wrong.value) == (
        f"there is no file {named or '(the name is empty)'} (--config, SPENDSTREAM_CONFIG): name a TOML file, "
        "or leave it out"
    )


def test_the_file_that_nobody_named_may_be_missing_but_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load(Settings).flush_interval == 0.1
    (tmp_path / "spendstream.toml").mkdir()
    assert load(Settings).flush_interval == 0.1
    monkeypatch.setenv("SPENDSTREAM_CONFIG", os.devnull)
    assert load(Settings).flush_interval == 0.1


def test_binds() -> None:
    assert split_bind("127.0.0.1:0") == ("127.0.0.1", 0)
    assert split_bind("[::1]:8080") == ("::1", 8080)


@pytest.mark.parametrize("bind", ["0.0.0.0:0", "[::]:0", "192.168.1.5:80", "example.org:80", "[2001:db8::1]:80"])
@pytest.mark.parametrize("door", ["http_bind", "grpc_bind"])
def test_a_public_address_without_tls_is_refused_unless_that_is_what_is_wanted(door: str, bind: str) -> None:
    with pytest.raises(SettingsError, match="keys would travel unencrypted") as wrong:
        load(ServerSettings, **{door: bind})
    assert bind in str(wrong.value)
    load(ServerSettings, **{door: bind}, insecure="true")
    load(ServerSettings, **{door: bind}, tls_cert="cert.pem", tls_key="key.pem")


@pytest.mark.parametrize("bind", ["127.0.0.1:0", "127.9.9.9:80", "[::1]:80", "localhost:80", "LOCALHOST:80"])
def test_what_only_this_machine_reaches_needs_no_tls(bind: str) -> None:
    load(ServerSettings, http_bind=bind, grpc_bind=bind)


def test_a_wrong_key_is_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "lqt_" + "e" * 63
    monkeypatch.setenv("SPENDSTREAM_BOOTSTRAP_KEY", secret)
    with pytest.raises(SettingsError) as wrong:
        load(ServerSettings)
    assert secret not in str(wrong.value)


SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"alert_webhook": "https://hook.example/x"}, "needs SPENDSTREAM_ALERT_SECRET"),
        ({"alert_webhook": "http://hook.example/x", "alert_secret": SECRET}, "must be https://"),
        ({"alert_webhook": "ftp://hook.example/x", "alert_secret": SECRET}, "must be https://"),
        ({"alert_webhook": "https://me:password@hook.example/", "alert_secret": SECRET}, "without user and password"),
        ({"alert_secret": "password"}, "must be whsec_"),
    ],
)
def test_a_webhook_is_signed_and_over_https(settings: dict[str, str], says: str) -> None:
    with pytest.raises(SettingsError, match=says) as wrong:
        load(ServerSettings, **settings)
    assert "password@" not in str(wrong.value)
    load(ServerSettings, alert_webhook="https://hook.example/x", alert_secret=SECRET)
    load(ServerSettings, alert_webhook="http://10.0.0.1/x", alert_secret=SECRET, alert_allow_private="true")
