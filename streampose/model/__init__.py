"""The network in torch. Needs the extra `[train]`; what runs imports none of this."""

from streampose.model.network import FamiPose, decode, fami_pose, load, normalise

__all__ = ["FamiPose", "decode", "fami_pose", "load", "normalise"]
