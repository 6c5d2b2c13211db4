"""Denoise what comes over Bluesky's 0MQ proxy, and publish the results back.

    bluesky-0MQ-proxy --in-address 5577 --out-address 5578
    python callbacks/zmq.py settings.yaml --subscribe localhost:5578 --publish localhost:5577

The RunEngine publishes with ``RE.subscribe(Publisher("localhost:5577"))``. Results are
published under the prefix ``denoised``: ``RemoteDispatcher(address, prefix=b"denoised")``
receives them and nothing else. What the bus loses is read from Tiled. Bluesky unpickles what it
receives from the bus: use it on trusted networks only.
"""

import sys
from pathlib import Path

# This file has the name of a package that it needs; look for that elsewhere.
sys.path = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]

import argparse  # noqa: E402
import asyncio  # noqa: E402
import logging  # noqa: E402
import signal  # noqa: E402
from contextlib import closing  # noqa: E402

from bluesky.callbacks.zmq import Publisher, RemoteDispatcher  # noqa: E402
from zmq import ZMQError  # noqa: E402

from bluesky_denoise import DenoiseError, bus_denoiser  # noqa: E402

EXPECTED = "expected an address such as localhost:5578"


def check_port(option: str, address: str) -> None:
    """Refuse a port that is none: 0MQ takes 70000 for another one, and says nothing."""
    port = address.rpartition(":")[2]
    if port.isdecimal() and not 0 < int(port) < 2**16:
        sys.exit(f"{option} {address!r}: port {port} is none from 1 to 65535; {EXPECTED}")


class Dispatcher(RemoteDispatcher):
    """It ends what waits for documents before it closes its loop; asyncio would complain."""

    def stop(self) -> None:
        """Let nothing more in, and close."""
        self.unsubscribe_all()
        if not self.loop.is_closed() and (tasks := asyncio.all_tasks(self.loop)):
            for task in tasks:
                task.cancel()
            self.loop.run_until_complete(asyncio.wait(tasks))
        super().stop()


def main() -> None:
    """Serve until interrupted."""
    # Service managers end a program so: let it close its runs and write what is left.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", help="YAML file")
    parser.add_argument("--subscribe", default="localhost:5578", help="where documents come from")
    parser.add_argument("--publish", default="localhost:5577", help="where results go")
    arguments = parser.parse_args()
    check_port("--subscribe", arguments.subscribe)
    check_port("--publish", arguments.publish)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)

    try:
        publisher = Publisher(arguments.publish, prefix=b"denoised")
    except ZMQError as error:
        sys.exit(f"--publish {arguments.publish!r}: {error}; {EXPECTED}")
    try:
        with closing(publisher), bus_denoiser(arguments.settings, publisher) as take:
            dispatcher = Dispatcher(arguments.subscribe)
            dispatcher.subscribe(take)
            print(f"Denoising what comes from {arguments.subscribe}; end with Ctrl-C.", flush=True)
            dispatcher.start()
    except KeyboardInterrupt:
        pass
    except DenoiseError as error:
        sys.exit(str(error))
    except ZMQError as error:
        sys.exit(f"--subscribe {arguments.subscribe!r}: {error}; {EXPECTED}")


if __name__ == "__main__":
    main()
