"""Which partitions a process owns, as Faust asks for it. Faust's own classes are for the group protocol of aiokafka."""

from typing import Any

from mode import Service
from yarl import URL

from processor.log.faust_library import TP, HostToPartitionMap, LeaderAssignorT, PartitionAssignorT


class Assignment(PartitionAssignorT):
    """The partitions that the transport has assigned, none of them as a standby."""

    def __init__(self, app: Any, replicas: int = 0) -> None:
        self.app = app
        self.replicas = replicas
        self.owned: frozenset[TP] = frozenset()
        """Set by the transport before it says that partitions are assigned."""

    def assigned_actives(self) -> set[TP]:
        """Return what is owned."""
        return set(self.owned)

    def is_active(self, tp: TP) -> bool:
        """Return whether a partition is owned."""
        return tp in self.owned

    def assigned_standbys(self) -> set[TP]:
        """Return an empty set."""
        return set()

    def is_standby(self, tp: TP) -> bool:
        """Return False."""
        return False

    def group_for_topic(self, topic: str) -> int:
        """Return the one group of topics whose partitions go together."""
        return 0

    def table_metadata(self, topic: str) -> HostToPartitionMap:
        """Return nothing: where other processes serve their tables is unknown."""
        return {}

    def tables_metadata(self) -> HostToPartitionMap:
        """Return nothing."""
        return {}

    def key_store(self, topic: str, key: bytes) -> URL:
        """Raise: other processes do not serve their tables."""
        raise NotImplementedError(f"no process serves tables over HTTP (topic {topic})")


class NoLeader(Service, LeaderAssignorT):
    """For what runs in one process of several: nothing does."""

    def __init__(self, app: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.app = app

    def is_leader(self) -> bool:
        """Return False."""
        return False
