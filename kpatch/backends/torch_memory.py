"""The memory of a parameter of torch: who else sees it, and which one takes its place."""

import weakref

import torch


def writable(variable, donate, whole=False):
    """The memory to write into: the parameter's if it is private, else a copy for `_publish`.

    If all of it is written, as `whole` says, nothing is copied.
    """
    parameter = variable._value
    if donate and alone(parameter):
        return parameter.detach()
    with torch.inference_mode(False):
        return torch.empty_like(parameter.detach()) if whole else parameter.detach().clone()


def publish(variable, tensor):
    parameter = variable._value
    if parameter.data_ptr() != tensor.data_ptr():
        move(parameter, tensor)


def move(parameter, tensor):
    """Gives the parameter the memory of another tensor."""
    if left := _taken.get(parameter.data_ptr()):
        left.settle()
    parameter.data = tensor


_taken = weakref.WeakValueDictionary()  # by the address of their memory


class Taken:
    """Values whose memory a parameter took over: optimizers write into it, and torch counts that."""

    def __init__(self, parameter, values):
        self._parameter, self._values = parameter, values
        self._version = None if parameter.is_inference() else parameter._version  # of those torch counts nothing
        self._settled = False
        _taken[parameter.data_ptr()] = self

    def _is_as_it_was(self):
        return self._version is None or self._parameter._version == self._version

    def settle(self):
        """The parameter gets other memory now: what is written from now on does not come here."""
        if not self._settled and not self._is_as_it_was():
            self._values = None
        self._settled = True

    def unchanged(self):
        """The values; `None` if others may have come to their memory."""
        return self._values if self._settled or self._is_as_it_was() else None


def alone(tensor):
    """Whether the storage can be written in place: it is private and dense, or it is shared memory."""
    if _holders(tensor) == ALONE and tensor.untyped_storage().resizable():
        return tensor.is_contiguous() or _dense(tensor)
    return tensor.device.type == "cpu" and tensor.is_shared()


def _dense(tensor):
    """Whether the tensor fills its memory without gaps or overlaps, in any order of axes."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _holders(tensor):
    """The number of references to the storage, including this one; -1 if this torch has no count."""
    return COUNT(tensor.untyped_storage()._cdata) if COUNT else -1


def _counter():
    """torch's private function that counts references, and its value for one tensor; without it every write copies."""
    count = getattr(torch._C, "_storage_Use_Count", None)
    if count is None or not hasattr(torch.UntypedStorage, "_cdata"):
        return None, 0
    tensor = torch.empty(1)
    alone = count(tensor.untyped_storage()._cdata)
    alias = tensor.detach()
    return (count, alone) if count(alias.untyped_storage()._cdata) == alone + 1 else (None, 0)


COUNT, ALONE = _counter()
