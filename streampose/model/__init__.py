"""The network in torch. Needs the extra `[train]`; what runs imports none of this."""

from streampose.model.checkpoint import ImportReport, import_weights, load
from streampose.model.fuser import Fused
from streampose.model.network import FamiPose, decode, fami_pose, normalise

__all__ = ["FamiPose", "Fused", "ImportReport", "decode", "fami_pose", "import_weights", "load", "normalise"]
