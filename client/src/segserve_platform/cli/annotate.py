"""`segserve annotate`: models for people who label images."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from typing import Annotated

import typer

from segserve_platform.cli.options import GatewayUrl, PlatformOptions, model_client, model_names, with_platform_options
from segserve_platform.cli.page import check_page
from segserve_platform.cli.signals import ends_on_signals


@with_platform_options
def annotate(
    platform_options: PlatformOptions,
    models: Annotated[list[str], typer.Argument(help="Model names.", show_default=False, autocompletion=model_names)],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port.")] = 9090,
    host: Annotated[
        str, typer.Option(help="IPv4 address to listen at. Any client that reaches it is served.")
    ] = "127.0.0.1",
    label_studio: Annotated[
        str, typer.Option(envvar="LABEL_STUDIO_URL", help="Label Studio's URL. LABEL_STUDIO_API_KEY has its token.")
    ] = "http://127.0.0.1:8080",
    allow: Annotated[
        list[str] | None, typer.Option(metavar="URL", help="Further origin of images, such as https://bucket.example.")
    ] = None,
    url: GatewayUrl = None,
) -> None:
    """Serve models to Label Studio and CVAT: pre-labels of any model, and objects under clicks of promptable ones.

    This process serves until Ctrl-C. Label Studio connects to the printed URLs, CVAT to the port as its Nuclio.
    """
    check_page()
    from segserve.calls.endpoint import GatewayEndpoint
    from segserve_common.http.urls import is_loopback
    from segserve_ui.annotate.app import create_app
    from segserve_ui.annotate.images import TaskImages
    from segserve_ui.server import HOST, listening, running

    images = TaskImages(label_studio, os.environ.get("LABEL_STUDIO_API_KEY"), allow or ())
    try:
        with ends_on_signals(), ExitStack() as stack:
            listener = stack.enter_context(listening("the service", host, port))
            clients = {name: stack.enter_context(model_client(platform_options, name, url)) for name in models}
            for name, client in clients.items():
                client.model_info(name)  # raises for one that is not there
            if any(repr(GatewayEndpoint.parse(label_studio).url) in repr(client) for client in clients.values()):
                typer.echo(f"note: --label-studio {label_studio} is the gateway's own address: name another", err=True)
            app = create_app(clients, images, (HOST, "localhost", host) if is_loopback(host) else ("*",))
            stack.enter_context(running(app, listener))
            for name in models:
                typer.echo(f"{name}: http://{host}:{port}/{name}")
            threading.Event().wait()
    except (KeyboardInterrupt, SystemExit) as ended:
        # A thread that waits for a slow host would keep the process.
        os._exit(ended.code if isinstance(ended, SystemExit) and isinstance(ended.code, int) else 130)
