"""What handing on a full-size LoRA (1.18 B parameters, 2.4 GB in bf16) costs, measured."""

import time

import numpy as np
import psutil
import pytest
import ray

pytestmark = pytest.mark.slow
PARAMETERS, TENSORS = 1_180_000_000, 840
STORE = 6 * 2**30


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
class Student:
    def __init__(self) -> None:
        each = PARAMETERS // TENSORS
        self.weights = {f"w{i}": np.ones(each, dtype=np.uint16) for i in range(TENSORS)}

    def put(self) -> tuple[list[ray.ObjectRef], float]:
        began = time.monotonic()
        reference = ray.put(self.weights)
        return [reference], time.monotonic() - began


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
class Teacher:
    def __init__(self) -> None:
        each = PARAMETERS // TENSORS
        self.weights = {f"w{i}": np.zeros(each, dtype=np.uint16) for i in range(TENSORS)}

    def take(self, policy: list[ray.ObjectRef]) -> tuple[float, float, int]:
        began = time.monotonic()
        weights = ray.get(policy[0])
        got = time.monotonic()
        for name, value in weights.items():
            np.copyto(self.weights[name], value)
        return got - began, time.monotonic() - got, int(self.weights["w7"].sum())


def test_weight_sync_of_a_full_size_adapter() -> None:
    if psutil.virtual_memory().available < 15 * 2**30:
        pytest.skip("needs 15 GiB of free memory")
    ray.init(address="local", num_cpus=2, object_store_memory=STORE, include_dashboard=False)
    try:
        student, teacher = Student.remote(), Teacher.remote()
        for attempt in range(3):
            policy, put = ray.get(student.put.remote())
            got, copied, ones = ray.get(teacher.take.remote(policy))
            assert ones == PARAMETERS // TENSORS
            print(
                f"{attempt}: put {put:.2f} s, get {got:.2f} s, copy into the model {copied:.2f} s"
            )
    finally:
        ray.shutdown()
