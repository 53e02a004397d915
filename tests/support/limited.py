"""A user of Redis from whom the test takes rights."""
from __future__ import annotations


class Limited:
    """A user of Redis from whom the right to single commands is taken.

    Scripts read pages by GET and fields by HGET, so writes of one of both are refused.
    """

    def __init__(self, redis):
        self.redis = redis
        self.allow("@all")
        redis.execute_command("ACL", "SETUSER", "limited", "on", "nopass", "~*", "&*")
        where = redis.connection_pool.connection_kwargs
        self.url = f"redis://limited:any@{where['host']}:{where['port']}/{where['db']}"

    def allow(self, command):
        self.redis.execute_command("ACL", "SETUSER", "limited", f"+{command}")

    def refuse(self, command):
        self.redis.execute_command("ACL", "SETUSER", "limited", f"-{command}")
