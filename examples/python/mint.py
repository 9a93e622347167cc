"""Signs a token, in place of an identity provider:  python3 mint.py alice [claim=value...]

The first call makes a secret; it stays in .env, where the gate finds it too.
"""

import base64
import hmac
import json
import os
import sys
import time

if not os.path.exists(".env"):
    with open(os.open(".env", os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
        file.write(f"JWT_SECRET={base64.b64encode(os.urandom(32)).decode()}\n")
with open(".env") as file:
    secret = base64.b64decode(file.read().removeprefix("JWT_SECRET="))


def encode(part: bytes) -> str:
    return base64.urlsafe_b64encode(part).decode().rstrip("=")


sub, *more = sys.argv[1:] or ["alice"]
now = int(time.time())
claims = {"sub": sub, "aud": "demo", "iat": now, "exp": now + 3600, **dict(claim.split("=") for claim in more)}

signed = ".".join(encode(json.dumps(part).encode()) for part in ({"alg": "HS256", "typ": "JWT"}, claims))
print(signed + "." + encode(hmac.digest(secret, signed.encode(), "sha256")))
