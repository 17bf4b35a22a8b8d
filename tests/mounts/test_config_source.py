"""The one-line notation of sources."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clivefs.base.errors import UsageError
from clivefs.mounts.config.config import MountEntry
from clivefs.mounts.config.errors import BadValue
from clivefs.mounts.config.source_notation import (
    Source,
    anchor,
    check_archive,
    check_git,
    check_local,
    check_ref,
    check_relative,
    host_path,
    parse_source,
)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("git+https://h/x.git", Source("git", "https://h/x.git")),
        ("git+https://h/x.git@v1", Source("git", "https://h/x.git", "v1")),
        ("git+https://h/x.git@feature/x#subdir=a/b", Source("git", "https://h/x.git", "feature/x", "a/b")),
        ("git+https://h/x.git#subdir=src", Source("git", "https://h/x.git", None, "src")),
        ("git+https://u:p@h:8443/x", Source("git", "https://u:p@h:8443/x")),
        ("git+https://u@h/@scope/x@v1", Source("git", "https://u@h/@scope/x", "v1")),
        ("git+https://h/x@@scope/tool@1.0.0", Source("git", "https://h/x", "@scope/tool@1.0.0")),
        ("git+https://h/a%40b/x@v1", Source("git", "https://h/a%40b/x", "v1")),
        ("git+ssh://git@h/x@v1", Source("git", "ssh://git@h/x", "v1")),
        ("git+git@h:x/y.git", Source("git", "git@h:x/y.git")),
        ("git+git@h:x/y.git@release/1.x", Source("git", "git@h:x/y.git", "release/1.x")),
        ("git+git@h:@scope/y", Source("git", "git@h:@scope/y")),
        ("git+git@[::1]:x@v1", Source("git", "git@[::1]:x", "v1")),
        ("git+h:x@v1", Source("git", "h:x", "v1")),
        ("git+file:///srv/x@v1", Source("git", "file:///srv/x", "v1")),
        ("git+../x@v1", Source("git", "../x", "v1")),
        ("git+/srv/@scope/x@v1", Source("git", "/srv/@scope/x", "v1")),
        ("git+/srv/a%40b%23c%25d%41@v1", Source("git", "/srv/a@b#c%d%41", "v1")),
        ("git+https://h/x@issue#7#subdir=src", Source("git", "https://h/x", "issue#7", "src")),
        ("git+.@HEAD", Source("git", ".", "HEAD")),
        ("git+../x@v1~2", Source("git", "../x", "v1~2")),
        ("git+../x@main@{yesterday}", Source("git", "../x", "main@{yesterday}")),
        ("git+../x@@{u}#subdir=a", Source("git", "../x", "@{u}", "a")),
        ("git+git@h:x.git@main^{/fix it}", Source("git", "git@h:x.git", "main^{/fix it}")),
        ("pypi:six==1.16.0", Source("pypi", "six==1.16.0")),
        ("npm:left-pad@1.3.0", Source("npm", "left-pad@1.3.0")),
        ("npm:@types/node@20.1.0", Source("npm", "@types/node@20.1.0")),
        ("archive:https://h/x.tar.gz", Source("archive", "https://h/x.tar.gz")),
        ("archive:../x.zip#subdir=x", Source("archive", "../x.zip", None, "x")),
        ("../data", Source("local", "../data")),
        ("/srv/data", Source("local", "/srv/data")),
        ("./git+x", Source("local", "./git+x")),
        ("lib/a:b", Source("local", "lib/a:b")),
        ("a@b", Source("local", "a@b")),
    ],
)
def test_parse(text: str, expected: Source) -> None:
    assert parse_source(text) == expected
    assert parse_source(str(expected)) == expected


@pytest.mark.parametrize(
    "text, hint",
    [
        ("", "git+URL"),
        ("https://h/x.git", "git+https://h/x.git or archive:https://h/x.git"),
        ("git@h:x.git", "git+git@h:x.git"),
        ("pip:six==1", "did you mean `pypi:`?"),
        ("pypi:six", "six==1.16.0"),
        ("pypi:six>=1", "six==1.16.0"),
        ("npm:left-pad", "left-pad@1.3.0"),
        ("npm:left-pad@latest", "left-pad@1.3.0"),
        ("session:-5m", "git+URL"),
        ("peer:desk/shop", "git+URL"),
        ("git+https://h/x@", "a branch, a tag or a commit"),
        ("git+https://h/x#main", "#subdir=D"),
        ("git+https://h/x#subdir=../y", ""),
        ("git+ext::sh -c id", "file://"),
        ("git+-x", "./"),
        ("~/x", "absolute path"),
    ],
)
def test_refuses(text: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_source(text)
    assert caught.value.exit_code == 2
    assert caught.value.remedy
    assert hint in caught.value.remedy


def test_a_ref_given_separately_wins() -> None:
    assert parse_source("git+https://h/x@v1", ref="v2").ref == "v2"
    assert parse_source("git+https://h/x", ref="v2").ref == "v2"
    with pytest.raises(UsageError, match="a ref belongs to a git source"):
        parse_source("../x", ref="v2")
    with pytest.raises(UsageError, match="is not a ref"):
        parse_source("git+../x", ref="-x")


@pytest.mark.parametrize(
    "ref",
    [
        "main",
        "v1.0",
        "feature/x-y_z",
        "@scope/x@1",
        "HEAD",
        "a" * 40,
        "é",
        "refs/heads/x",
        "a~1",
        "a^",
        "v1^{commit}",
        "a~2^2~",
        "main@{yesterday}",
        "a@{2 days ago}",
        "@",
        "@~1",
        "@{u}",
        "HEAD^{/fix it}",
    ],
)
def test_refs(ref: str) -> None:
    assert check_ref(ref) == ref


@pytest.mark.parametrize(
    "ref",
    [
        "",
        "-x",
        "a..b",
        "a b",
        "~1",
        "^a",
        "a:b",
        "a?",
        "[",
        "x.lock",
        "a//b",
        "/a",
        "a/",
        "-@{1}",
        "a@{1\n}",
        "a\n",
        ".",
        "a~b",
        "a@{}",
        "a b~1",
        ":/fix it",
        "a..b~1",
        ":/",
        "a~1\n",
    ],
)
def test_not_refs(ref: str) -> None:
    with pytest.raises(BadValue):
        check_ref(ref)


@pytest.mark.parametrize(
    "source, expected",
    [
        (Source("local", "../x"), "/home/u/x"),
        (Source("local", "/x/"), "/x"),
        (Source("local", "../../../../x"), "/x"),
        (Source("git", "."), "/home/u/shop"),
        (Source("git", "file:///srv/a%20b"), "/srv/a b"),
        (Source("git", "FILE:///srv/x"), "/srv/x"),
        (Source("git", "https://h/x"), None),
        (Source("git", "h:x"), None),
        (Source("git", "./h:x"), "/home/u/shop/h:x"),
        (Source("archive", "x.tar"), "/home/u/shop/x.tar"),
        (Source("archive", "https://h/x.tar"), None),
        (Source("pypi", "six==1"), None),
    ],
)
def test_host_path(source: Source, expected: str | None) -> None:
    assert host_path(source, "/home/u/shop") == expected


def test_anchor() -> None:
    def anchored(text: str) -> str:
        return anchor(parse_source(text), "/home/u/shop/src/deep", "/home/u/shop").location

    assert anchored("../../../data") == "../data"
    assert anchored("x") == "src/deep/x"
    assert anchored("/srv/x") == "/srv/x"
    assert anchored("git+../../../x@v1") == "../x"
    assert anchored("git+https://h/x") == "https://h/x"
    assert anchored("git+git@h:x") == "git@h:x"
    assert anchored("git+file:///x") == "file:///x"
    assert anchored("pypi:six==1") == "six==1"
    assert anchor(Source("git", "./a:b"), "/r", "/r").location == "./a:b"


part = st.text(st.sampled_from("ab@#%:+.-0234é ~"), min_size=1, max_size=8)
path = st.lists(part, min_size=1, max_size=3).map("/".join)
location = st.one_of(
    path,
    path.map("/{}".format),
    path.map("../{}".format),
    path.map("https://u@h/{}".format),
    path.map("git@h:{}".format),
)
optional = st.none() | path


def allowed(source: Source) -> bool:
    try:
        {"local": check_local, "git": check_git, "archive": check_archive}[source.kind](source.location)
        if source.ref is not None:
            check_ref(source.ref)
        if source.subdir is not None:
            check_relative(source.subdir, "it")
    except BadValue:
        return False
    return True


@settings(max_examples=800, deadline=None)
@given(
    st.one_of(
        st.builds(Source, st.just("git"), location, optional, optional),
        st.builds(Source, st.just("archive"), location, st.none(), optional),
        st.builds(Source, st.just("local"), location, st.none(), st.none()),
    ).filter(allowed)
)
def test_what_is_written_is_read_back(source: Source) -> None:
    back = parse_source(str(source))
    assert (back.kind, back.ref, back.subdir) == (source.kind, source.ref, source.subdir)
    assert host_path(back, "/r/s") == host_path(source, "/r/s")
    if host_path(source, "/r/s") is None:  # an `@` of a URL's path comes back as `%40`: the same URL
        assert unescaped(back.location) == unescaped(source.location)
    entry = MountEntry(path="x", write="overlay", host_path=None, **source._asdict())
    assert entry.source == str(source)


def unescaped(url: str) -> str:
    return url.replace("%40", "@").replace("%23", "#")


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.text(max_size=40), part.map("git+{}".format), location.map("git+{}".format)))
def test_parse_raises_nothing_but_usage_errors(text: str) -> None:
    try:
        source = parse_source(text)
    except UsageError as error:
        text = str(error)
    else:
        assert parse_source(str(source)) == source
