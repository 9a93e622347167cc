"""A chat room on websockets. It knows nothing of tokens: whoever gets here has
been let in, and X-User-Id says who it is."""

import asyncio

import websockets

members = set()


async def chat(socket):
    # websockets 14 moved them; Debian 12 has version 10.
    headers = socket.request.headers if hasattr(socket, "request") else socket.request_headers
    user = headers["X-User-Id"]
    members.add(socket)
    try:
        await socket.send(f"welcome, {user}")
        async for message in socket:
            websockets.broadcast(members, f"{user}: {message}" if isinstance(message, str) else message)
    finally:
        members.remove(socket)


async def main():
    async with websockets.serve(chat, "127.0.0.1", 3000):
        print("chat on port 3000", flush=True)
        await asyncio.Future()  # until Ctrl-C


asyncio.run(main())
