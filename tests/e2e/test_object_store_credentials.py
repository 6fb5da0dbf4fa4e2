"""Credentials as every AWS tool finds them. Requests go to a real S3 behind a door that notes how
they are signed; the services that give credentials are stood in for."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from aws_stand_in import LATER, SOON, StandIn, aws_stand_in
from harness import Result, run_flow, run_python
from store_proxy import Door, proxy

pytestmark = pytest.mark.cluster

ROLE = "arn:aws:iam::1:role/data science"


@dataclass
class User:
    """Somebody without keys in the environment, the store and the stand-in."""

    folder: Path
    env: dict[str, str]
    root: str
    door: Door
    services: StandIn

    def put(self, arguments: str = "", **env: str) -> Result:
        """Puts an object with the `S3` client."""
        code = f"from metaflow import S3\nS3(s3root={self.root!r}{arguments}).put('x', 'text')"
        return run_python(self.folder, code, env={**self.env, **env})

    def config(self, text: str, credentials: str = "") -> None:
        (self.folder / ".aws").mkdir(exist_ok=True)
        (self.folder / ".aws/config").write_text(text)
        (self.folder / ".aws/credentials").write_text(credentials)

    def signed_with(self) -> tuple[str, str | None]:
        """Key and session token of the last request to the store."""
        headers = self.door.headers[-1]
        found = re.search(r"Credential=([^/]+)/", headers["authorization"])
        assert found
        return found[1], headers.get("x-amz-security-token")


@pytest.fixture
def user(folder: Path, s3: dict[str, str]) -> Iterator[User]:
    with proxy(s3["AWS_ENDPOINT_URL_S3"]) as door, aws_stand_in() as services:
        kept = {k: v for k, v in s3.items() if not k.startswith("AWS_")}
        env = {
            **kept,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_S3": door.url,
            "AWS_ENDPOINT_URL_STS": services.url,
            "AWS_ENDPOINT_URL_SSO": services.url,
            "AWS_ENDPOINT_URL_SSO_OIDC": services.url,
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": services.url,
        }
        yield User(folder, env, s3["METAFLOW_DATASTORE_SYSROOT_S3"], door, services)


def test_keys_in_the_environment_come_first(user: User) -> None:
    user.config("[default]\naws_access_key_id = FILE\naws_secret_access_key = s\n")
    keys = {"AWS_ACCESS_KEY_ID": "ENV", "AWS_SECRET_ACCESS_KEY": "s", "AWS_SESSION_TOKEN": "t"}
    user.put(**keys).ok()
    assert user.signed_with() == ("ENV", "t")
    user.put().ok()
    assert user.signed_with() == ("FILE", None)


def test_a_role_with_another_profile_s_keys(user: User) -> None:
    user.config(
        f"[profile work]\nrole_arn = {ROLE}\nsource_profile = keys\nexternal_id = acme\n",
        "[keys]\naws_access_key_id = KEYS\naws_secret_access_key = s\n",
    )
    user.put(AWS_PROFILE="work").ok()
    assert user.signed_with() == ("ROLE", "role-token")
    asked, headers = user.services.asked[0]
    assert "Action=AssumeRole" in asked and "RoleArn=arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fdata" in asked
    assert "ExternalId=acme" in asked
    assert "Credential=KEYS/" in headers["authorization"]


@pytest.mark.parametrize(
    ("where", "key"), [("Ec2InstanceMetadata", "MACHINE"), ("EcsContainer", "CONTAINER")]
)
def test_a_role_with_what_the_machine_has(user: User, where: str, key: str) -> None:
    user.config(f"[default]\nrole_arn = {ROLE}\ncredential_source = {where}\n")
    user.put(AWS_CONTAINER_CREDENTIALS_FULL_URI=f"{user.services.url}/agent").ok()
    assert user.signed_with() == ("ROLE", "role-token")
    assert f"Credential={key}/" in user.services.asked[-1][1]["authorization"]


def test_a_role_named_in_code(user: User) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "ENV", "AWS_SECRET_ACCESS_KEY": "s"}
    user.put(f", role={ROLE!r}", **keys).ok()
    assert user.signed_with() == ("ROLE", "role-token")
    assert "Credential=ENV/" in user.services.asked[0][1]["authorization"]
    user.services.refuses = True
    refused = user.put(f", role={ROLE!r}", **keys)
    assert refused.code == 1
    assert f"MetaflowS3AccessDenied: the role `{ROLE}` cannot be assumed: 403" in refused.stderr


def test_session_vars_and_client_params(user: User) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "ENV", "AWS_SECRET_ACCESS_KEY": "s"}
    user.config("", "[named]\naws_access_key_id = NAMED\naws_secret_access_key = s\n")
    user.put(", session_vars={'profile_name': 'named'}", **keys).ok()
    assert user.signed_with() == ("NAMED", None)
    params = "{'aws_access_key_id': 'PARAM', 'aws_secret_access_key': 's', 'region_name': 'eu-x-1'}"
    user.put(f", client_params={params}", **keys).ok()
    assert user.signed_with() == ("PARAM", None)
    assert "/eu-x-1/s3/" in user.door.headers[-1]["authorization"]
    wrong = user.put(", client_params={'endpoint': 'x'}", **keys)
    assert "S3(client_params={'endpoint': …}) is not known here; known are" in wrong.stderr
    missing = user.put(", session_vars={'profile_name': 'nobody'}", **keys)
    assert "there is no AWS profile `nobody` in `" in missing.stderr


def test_a_web_identity(user: User) -> None:
    token = user.folder / "token"
    token.write_text("signed by the cluster\n")
    of_pod = {"AWS_WEB_IDENTITY_TOKEN_FILE": str(token), "AWS_ROLE_ARN": ROLE}
    user.put(**of_pod).ok()
    assert user.signed_with() == ("WEB", "web-token")
    asked, headers = user.services.asked[0]
    assert "WebIdentityToken=signed%20by%20the%20cluster" in asked
    assert "authorization" not in headers
    user.config(f"[profile pod]\nrole_arn = {ROLE}\nweb_identity_token_file = {token}\n")
    user.put(AWS_PROFILE="pod").ok()
    assert user.signed_with() == ("WEB", "web-token")
    gone = user.put(**{**of_pod, "AWS_WEB_IDENTITY_TOKEN_FILE": "/no/token"})
    assert "cannot be assumed with the token in `/no/token`: No such file" in gone.stderr


def test_the_agent_beside_a_container(user: User) -> None:
    place = {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{user.services.url}/agent"}
    token = user.folder / "token"
    token.write_text("secret-of-the-pod\n")
    user.put(**place, AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=str(token)).ok()
    assert user.signed_with() == ("CONTAINER", "CONTAINER-token")
    assert user.services.asked[0][1]["authorization"] == "secret-of-the-pod"


def test_the_role_of_the_machine(user: User) -> None:
    user.put().ok()
    assert user.signed_with() == ("MACHINE", "MACHINE-token")
    assert user.services.asked[-1][1]["x-aws-ec2-metadata-token"] == "machine-token"


def sign_in(user: User, **cached: str) -> Path:
    user.config(
        "[default]\nsso_session = corp\nsso_account_id = 12\nsso_role_name = Data Scientist\n"
        "[sso-session corp]\nsso_region = us-east-1\nsso_start_url = https://corp.example\n"
    )
    folder = user.folder / ".aws/sso/cache"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.sha1(b'corp').hexdigest()}.json"
    path.write_text(json.dumps(cached))
    return path


def test_single_sign_on(user: User) -> None:
    sign_in(user, accessToken="signed-in", expiresAt=LATER)
    user.put().ok()
    assert user.signed_with() == ("SSO", "SSO-token")
    asked, headers = user.services.asked[0]
    assert "role_name=Data%20Scientist&account_id=12" in asked
    assert headers["x-amz-sso_bearer_token"] == "signed-in"
    sign_in(user, accessToken="signed-in", expiresAt=SOON)
    told = user.put()
    assert "you are not signed in to `https://corp.example`, or no longer" in told.stderr
    assert "run `aws sso login`" in told.stderr


def test_single_sign_on_is_renewed(user: User) -> None:
    path = sign_in(
        user,
        accessToken="old",
        expiresAt=SOON,
        clientId="c",
        clientSecret="s",
        refreshToken="r",
    )
    user.put().ok()
    assert user.services.asked[-1][1]["x-amz-sso_bearer_token"] == "renewed"
    kept = json.loads(path.read_text())
    assert kept["accessToken"] == "renewed" and kept["expiresAt"] > SOON
    assert kept["refreshToken"] == "r" and path.stat().st_mode & 0o077 == 0


def test_a_code_that_nobody_can_type_is_told(user: User) -> None:
    user.config(f"[default]\nrole_arn = {ROLE}\nsource_profile = k\nmfa_serial = arn:phone\n")
    told = user.put()
    assert "the AWS profile `default` asks for a code of the device `arn:phone`" in told.stderr


def test_credentials_are_asked_for_again_before_they_expire(user: User) -> None:
    """An engine keeps its connection for days. Keys that are over are never used again."""
    code = f"""
from metaflow import S3
with S3(s3root={user.root!r}) as s3:
    s3.put_many([(str(number), b"x" * 10) for number in range(20)])
    print(len(s3.get_all()))
"""
    asked = {}
    for expires in (LATER, SOON):
        user.services.expires = expires
        user.services.asked.clear()
        assert run_python(user.folder, code, env=user.env).ok().stdout == "20\n"
        asked[expires] = sum(text.endswith("/my-role ") for text, _ in user.services.asked)
    assert asked[LATER] == 3, "once for each call: to put, to list, to get"
    assert asked[SOON] == 41, "once for each request"


def test_a_bucket_in_another_region(user: User) -> None:
    """AWS says where it is; the request is signed for there and sent again."""
    user.door.region = "eu-north-1"
    keys = {"AWS_ACCESS_KEY_ID": "ENV", "AWS_SECRET_ACCESS_KEY": "s"}
    user.put(**keys).ok()
    assert [method for method, _ in user.door.requests] == ["PUT", "PUT"]
    source = """
    class AwayFlow(FlowSpec):
        @step
        def start(self):
            self.x = list(range(30000))
            self.next(self.end)

        @step
        def end(self):
            print("sum", sum(self.x))
    """
    result = run_flow(user.folder, source, "run", env={**user.env, **keys}).ok()
    assert "sum 449985000" in result.stdout
