"""A port in front of another: `python -m tests.chaos.runner.tcp_front PORT TARGET_PORT`, both of 127.0.0.1.

While this process is killed the server behind it cannot be reached (connections are refused, open ones reset), and it
keeps what it has: an outage of a server that holds its data in memory.
"""

import asyncio
import contextlib
import sys

CHUNK_BYTES = 1 << 16
HOST = "127.0.0.1"


async def main(port: int, target_port: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            try:
                target_reader, target_writer = await asyncio.open_connection(HOST, target_port)
            except OSError:
                return
            with contextlib.closing(target_writer):
                ways = [_copy(reader, target_writer), _copy(target_reader, writer)]
                tasks = [asyncio.ensure_future(way) for way in ways]
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in tasks:
                    task.cancel()

    server = await asyncio.start_server(serve, HOST, port)
    async with server:
        await server.serve_forever()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
