"""SGLang's scheduler with an emulated device. Imported only after SGLang's plugins are loaded."""

from __future__ import annotations

from typing import Any

from sglang.srt.managers.scheduler import Scheduler
from sglang.srt.managers.scheduler_components.ipc_channels import SchedulerIpcChannels

from tokencake_sglang.emulator.transport import MemoryReceiver, MemorySender
from tokencake_sglang.emulator.worker import EmulatedWorker


def scheduler_class(server: Any) -> type[Scheduler]:
    """Scheduler whose device, worker and channels belong to `server` (an EmulatedServer)."""

    class Worker(EmulatedWorker):
        emulation = server

    class Receiver(MemoryReceiver):
        __slots__ = ()
        pull = staticmethod(lambda: server.pull())

    class EmulatedScheduler(Scheduler):
        def init_ipc_channels(self, port_args: Any) -> None:
            sender = MemorySender(lambda output: server.on_output(output))
            self.ipc_channels = SchedulerIpcChannels(
                recv_from_tokenizer=None, recv_from_rpc=None, send_to_tokenizer=sender, send_to_detokenizer=sender,
                send_metrics_from_scheduler=None)
            self.load_snapshot_writer = None
            self.recv_from_tokenizer = None

        def init_tp_model_worker(self) -> None:
            self.tp_worker = Worker(
                server_args=self.server_args, gpu_id=self.ps.gpu_id, ps=self.ps, nccl_port=self.nccl_port)

        def init_request_receiver(self) -> None:
            super().init_request_receiver()
            made = self.request_receiver
            self.request_receiver = Receiver(
                **{name: getattr(made, name) for name in made.__dataclass_fields__})

        def init_overlap(self) -> None:
            super().init_overlap()
            device = server.device
            self.device_module = device
            self.schedule_stream = device.streams[0]
            self.forward_stream = self.forward_stream_ctx = device.Stream(name="forward")
            self.copy_stream = self.copy_stream_ctx = device.Stream(name="copy")

    return EmulatedScheduler
