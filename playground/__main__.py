"""Start the playground: one local page for the course's own models.

    python -m playground                the address is printed
    python -m playground --open         ... and opened in your browser
    python -m playground --port 5010    if another program has the usual port

It listens on 127.0.0.1 only. Ctrl-C ends it.
"""

import argparse
import errno
import re
import sys

ADDRESS, PORT = "127.0.0.1", 5006
NAMES = (ADDRESS, "localhost")  # by which a browser may ask for the page


def main(arguments: list[str] | None = None) -> None:
    """The command: see the head of this file."""
    parser = argparse.ArgumentParser(
        prog="python -m playground",
        description="A local page for the course's own models.",
    )
    parser.add_argument("--port", type=int, default=PORT, help=f"default: {PORT}")
    parser.add_argument("--open", action="store_true", help="open it in your browser")
    chosen = parser.parse_args(arguments)
    if not 0 < chosen.port < 65536:
        parser.error(f"port {chosen.port} is none; name one from 1 to 65535")
    try:
        import panel
        from tornado.web import ErrorHandler
    except ModuleNotFoundError:
        sys.exit("The playground needs Panel. `make play` installs it and starts this.")

    from playground.page import base, page

    panel.extension(design="native")
    panel.config.session_history = 0
    url = f"http://{ADDRESS}:{chosen.port}/"
    try:
        server = panel.io.server.get_server(
            {"/": page},
            port=chosen.port,
            address=ADDRESS,
            websocket_origin=[f"{name}:{chosen.port}" for name in NAMES],
            title={"/": "Playground"},
            show=chosen.open,
            # A page that was closed, and what was typed there, is forgotten soon, but
            # not sooner than a slow machine may need to open it.
            check_unused_sessions_milliseconds=10_000,
            unused_session_lifetime_milliseconds=60_000,
        )
    except OSError as error:
        in_use = error.errno == errno.EADDRINUSE
        reason = "is in use" if in_use else f"cannot be used ({error.strerror})"
        sys.exit(
            f"Port {chosen.port} {reason}. Name another one, as in\n"
            f"    make play PLAY_ARGS='--port {PORT + 4}'"
        )
    # A page from elsewhere whose name leads to this machine has the origin that it asks
    # for, and Tornado lets it in without asking Bokeh. So other names are refused.
    others = "(?!(" + "|".join(map(re.escape, NAMES)) + ")$).*$"
    server._tornado.add_handlers(others, [(".*", ErrorHandler, {"status_code": 403})])
    base()  # so that the first visit need not wait for it
    print(f"The playground is at {url} (Ctrl-C ends it)", flush=True)
    try:
        server.start()
        server.io_loop.start()
    except KeyboardInterrupt:
        print("\nThe playground has ended.")


if __name__ == "__main__":
    main()
