"""URLs are shown without their secrets, whatever form they have."""

from __future__ import annotations

import pickle
from urllib.parse import quote

import pytest

from bo_act.errors import BoActError, ExpressionError
from bo_act.urls import shown_url, without_secrets, without_secrets_of

PW = "M4rk3rW0rd"

FORMS = [
    f"postgresql://u:{PW}@h:5432/db",
    f"postgresql+psycopg://u:{PW}@h/db?sslmode=require",
    f"mysql://u:{PW}@h/db",
    f"postgresql://:{PW}@h/db",
    f"postgresql://user@server:{PW}@h/db",
    f"postgresql://u:{PW}@[::1]:5432/db",
    *(f"postgresql://u:a{one}{PW}{one}b@h/db" for one in "@:/?#&;=%+ '\"<>\\{}[]|$!,"),
    f"postgresql://u:{quote('@:/' + PW, safe='')}@h/db",
    f"postgresql://h/db?user=u&password={PW}",
    f"postgresql://h/db?password={PW}&user=u",
    f"postgresql://u@h/db?password=x@{PW}",
    f"postgresql://h:5432/db?PassWord=x@{PW}",
    f"postgresql://h/db?pass%77ord={PW}",
    f"postgresql://h/db?sslpassword={PW}&sslmode=require",
    f"mysql://h/db?passwd={PW}",
    f"mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BUID%3Du%3BPWD%3D{PW}",
    f"postgresql://u:{PW}",  # malformed from here on
    f"postgresql://u:{PW}/db",
    f"postgresql://u:{PW}@",
    f"postgresql://u:a@{PW}@h:port/db",
    f"postgresql://u:{PW}@[::1/db",
    f"nonsense://u:{PW}@@@@",
    f"https://u:{PW}@h/f.gz",
    f"https://{PW}@h/f.gz",
    f"https://h/f.gz?token=x@{PW}",
    f"https://h/f.gz?X-Amz-Signature={PW}#{PW}",
]


@pytest.mark.parametrize("url", FORMS)
def test_no_secret_is_shown(url):
    assert PW not in shown_url(url)
    assert PW not in shown_url(f"--set storage={url}")
    for text in (
        f"the storage {url} cannot be reached",
        f"['{url}', \"{url}\"]",
        f"<{url}>\n{url}",
    ):
        assert PW not in without_secrets(text)
    assert PW not in str(BoActError(f"the storage {url} is away"))
    assert PW not in str(pickle.loads(pickle.dumps(ExpressionError(f"{url} is no expression"))))


@pytest.mark.parametrize("url", FORMS)
def test_what_a_library_says_of_a_url_has_no_secret(url):
    for said in (f"invalid literal: '{PW}'", f"host '{PW}@h'", f"{PW}: no such host", url):
        assert PW not in without_secrets_of(url, said), said


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:pw@server:5432/studies", "postgresql://me@server:5432/studies"),
        (
            "postgresql://server/db?password=x&sslmode=require",
            "postgresql://server/db?sslmode=require",
        ),
        ("postgresql://server/db?user=me&password=x&a=b", "postgresql://server/db?user=me&a=b"),
        ("https://me:pw@server/file.gz?token=x", "https://server/file.gz"),
    ],
)
def test_what_is_no_secret_is_shown(url, shown):
    assert shown_url(url) == without_secrets(url) == shown


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://me@server:5432/studies?sslmode=require&connect_timeout=5",
        "sqlite:////runs/me:x@home.db",
        "sqlite:///a.db x",
        "runs/me:x@home/study.db",
        "https://server/@scope/package",
        "http://127.0.0.1:8000/dashboard (write to me@home)",
        "postgresql://[::1]:5432/db",
        "expected postgresql://USER@SERVER/NAME",
        "postgresql://me@one:5432,two:5433/db",
        "trial 3 at 12:30 by me@host",
    ],
)
def test_what_has_no_secret_stays(text):
    text += " " + "a" * 200_000  # takes no time that grows with its square
    assert without_secrets(text) == text
