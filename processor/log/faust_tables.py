"""Faust's table manager, as every Faust app of this program has it."""

import faust.tables


class TableManager(faust.tables.TableManager):
    """Starts without the second that Faust's own class sleeps for late tables: ours exist before it starts."""

    async def on_start(self) -> None:
        if not self.should_stop:
            await self._update_channels()
            await self.recovery.start()
