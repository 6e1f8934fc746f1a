"""A GStreamer RTSP server at /cam: `gst_server.py PORT plain|password|sizes`; run with the system's Python.

plain: a ball, 320x240, 30 fps, a key frame a second. password: the same for user "u" with password "p w:1" alone.
sizes: 320x240, after SIGUSR1 160x120.
"""

import signal
import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer

ENCODE = "x264enc tune=zerolatency speed-preset=ultrafast key-int-max=30 ! rtph264pay name=pay0 pt=96"
BALL = "videotestsrc is-live=true pattern=ball ! capsfilter name=size"
CAPS = "video/x-raw,width=320,height=240,framerate=30/1"


def main() -> None:
    port, mode = sys.argv[1:]
    Gst.init(None)
    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(port)
    factory = GstRtspServer.RTSPMediaFactory()
    factory.set_shared(mode != "sizes")
    factory.set_launch(f"( {BALL} caps={CAPS} ! {ENCODE} )")
    if mode == "sizes":
        factory.connect("media-configure", lambda _, media: GLib.unix_signal_add(0, signal.SIGUSR1, shrink, media))
    if mode == "password":
        protect(server, factory)
    server.get_mount_points().add_factory("/cam", factory)
    server.attach(None)
    GLib.MainLoop().run()


def shrink(media: GstRtspServer.RTSPMedia) -> bool:
    filter_ = media.get_element().get_by_name("size")
    filter_.set_property("caps", Gst.Caps.from_string("video/x-raw,width=160,height=120,framerate=30/1"))
    return False


def protect(server: GstRtspServer.RTSPServer, factory: GstRtspServer.RTSPMediaFactory) -> None:
    auth = GstRtspServer.RTSPAuth()
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "user")
    auth.add_basic(GstRtspServer.RTSPAuth.make_basic("u", "p w:1"), token)
    server.set_auth(auth)
    permissions = GstRtspServer.RTSPPermissions()
    permissions.add_permission_for_role("user", "media.factory.access", True)
    permissions.add_permission_for_role("user", "media.factory.construct", True)
    factory.set_permissions(permissions)


main()
