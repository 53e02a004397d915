"""One subscription for each pattern that is followed in a process, however many follow it."""
from __future__ import annotations

import threading
from typing import Protocol

from .handlers import Handlers
from .subscription import KeyChange, Subscription
from .subscriptions import Subscriptions


class Follower(Protocol):
    """What changes are for; any thread calls its methods, and none of them waits."""

    def put(self, change: KeyChange) -> None:
        """Take a change; its value belongs to all followers."""

    def ring(self) -> None:
        """Take note that all that matches was found, or that there will be no more changes."""


class Feed(Handlers):
    """A subscription with its followers.

    Args:
        with_present: Whether what is there is delivered, too, and a copy of it is kept.
    """

    def __init__(self, subscriptions: Subscriptions, pattern: str, with_present: bool) -> None:
        super().__init__(None, None)
        self.followers: dict[Follower, None] = {}
        self.subscription: Subscription = subscriptions.prepare(pattern, self)
        self._present: dict[str, KeyChange] | None = None
        if with_present:
            self._present, self.subscription.look = {}, "deliver"
        self.subscription.found.on_set = self.ring

    @property
    def name(self) -> str:
        """What the log calls them."""
        return "an AsyncMemSync"

    @property
    def is_found(self) -> bool:
        """Whether all that matches was read since it is subscribed to."""
        return not self.subscription.found.is_clear()

    @property
    def has_ended(self) -> bool:
        """Whether there will be no more changes."""
        return self.subscription.closed

    def call(self, change: KeyChange) -> None:
        """Give a change to all followers."""
        if self._present is not None:
            self._present[change.key] = change  # first: a follower that comes now finds it here, or is given it below
        for follower in list(self.followers):
            follower.put(change)

    @property
    def present(self) -> list[KeyChange]:
        """What is there, as far as it was delivered; nothing unless the feed is one with that."""
        return list((self._present or {}).values())

    def ring(self) -> None:
        """Have all followers look."""
        for follower in list(self.followers):
            follower.ring()

    ended = ring


class Feeds:
    """The feeds of a process, which begin with their first follower and end with their last."""

    def __init__(self, subscriptions: Subscriptions) -> None:
        self._subscriptions = subscriptions
        self._feeds: dict[tuple[str, bool], Feed] = {}
        self._mutex = threading.Lock()

    def __len__(self) -> int:
        return len(self._feeds)

    def follow(self, pattern: str, follower: Follower, with_present: bool = False) -> Feed:
        """Give a follower the changes of what matches a pattern; return their feed.

        Args:
            with_present: Whether it is to find in the feed what is there, which is delivered, too; for patterns of few keys.

        Raises:
            InvalidKey: If the pattern can't be used.
        """
        pattern = self._subscriptions.keys.pattern(pattern)
        new = Feed(self._subscriptions, pattern, with_present)
        with self._mutex:
            feed = self._feeds.get((pattern, with_present))
            if feed is None or feed.has_ended:
                feed = self._feeds[pattern, with_present] = new
            feed.followers[follower] = None
        if feed is new:
            self._subscriptions.begin(feed.subscription)
        return feed

    def leave(self, feed: Feed, follower: Follower) -> None:
        """Give a follower no more changes."""
        with self._mutex:
            feed.followers.pop(follower, None)
            is_last = not feed.followers
            if is_last:
                self._feeds = {key: one for key, one in self._feeds.items() if one is not feed}
        if is_last:
            self._subscriptions.unsubscribe(feed.subscription.id)

    def deliver_all_if_down(self, feed: Feed) -> None:
        """Have all that matches delivered when Redis is back, if the feed is not subscribed by now."""
        self._subscriptions.deliver_all_if_down(feed.subscription)
