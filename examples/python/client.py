"""Says one thing in the chat:  TOKEN=... python3 client.py 'hello'"""

import asyncio
import os
import sys

import websockets

token = os.environ.get("TOKEN")
text = sys.argv[1] if len(sys.argv) > 1 else "hello"

# websockets 14 gave the parameter another name; Debian 12 has version 10.
HEADERS = "extra_headers" if int(websockets.__version__.split(".")[0]) < 14 else "additional_headers"


async def main():
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with websockets.connect("ws://localhost:8080/chat", **{HEADERS: headers}) as socket:
        await socket.send(text)
        async for message in socket:
            print(message)
            if message.endswith(f": {text}"):
                break


try:
    asyncio.run(main())
except websockets.InvalidHandshake as error:
    sys.exit(f"error: {error}")
