"""Key bytes in pages that are locked, kept out of core dumps, and wiped on release (DESIGN section 1).

Decides where secrets of at most one page live and how they leave: ``SecretBytes.reveal()`` is the only way out, and
can be searched for.  What Python cannot promise, and this module does not:

* bytes objects are immutable: whatever passed through one (a KMS's answer, ``Entropy.token``) stays in the heap
  until that memory is used again.  ``KeyPages.fill`` lets a producer write straight into the page instead.
* OpenSSL keeps a key schedule for as long as a cipher object lives, outside these pages; drop the cipher with the key.
* registers, stacks and a hypervisor's snapshots are not ours to wipe.

A fork sees wiped pages, and every secret of the parent refuses to be revealed in the child.
"""

from __future__ import annotations

import ctypes
import hmac
import mmap
import os
import resource
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn, Self

from keymesh.crypto.xaes import Octets
from keymesh.model.errors import Refused, Unavailable

PAGE_BYTES: Final = mmap.PAGESIZE
SLOT_BYTES: Final = 32
PAGES_MAX_DEFAULT: Final = 1_024

_MADV_WIPEONFORK: Final = 18
_PR_SET_DUMPABLE: Final = 4

_libc = ctypes.CDLL(None, use_errno=True)


class SecretBytes:
    """Some key bytes in locked memory.  No content in ``repr``; no equality, hash, copy, pickle or JSON form."""

    __slots__ = ("__weakref__", "_length", "_offset", "_page", "_view")

    def __init__(self, page: _Page, offset: int, length: int) -> None:
        self._page = page
        self._offset = offset
        self._length = length
        self._view: memoryview | None = page.view(offset, length).toreadonly()

    def reveal(self) -> memoryview:
        """A read-only view of the bytes, dead once they are wiped; do not keep it, slice it or copy it.

        Raises Refused where they are gone.
        """
        if self._view is None or self._page.orphaned:
            raise Refused("key-wiped", "the key is no longer in memory")
        return self._view

    def same_as(self, other: SecretBytes) -> bool:
        """Whether both hold the same bytes, in constant time."""
        return hmac.compare_digest(self.reveal(), other.reveal())

    def wipe(self) -> None:
        """Overwrite the bytes and give the memory back.  Doing it twice does nothing."""
        view, self._view = self._view, None
        if view is None:
            return
        try:
            view.release()
            reusable = True
        except BufferError:  # someone still reads through it: wipe, and never hand these slots out again
            reusable = False
        self._page.give_back(self._offset, self._length, reusable=reusable)

    @property
    def wiped(self) -> bool:
        return self._view is None or self._page.orphaned

    def __len__(self) -> int:
        return self._length

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wipe()

    def __del__(self) -> None:
        if getattr(self, "_view", None) is not None:
            self.wipe()

    def __repr__(self) -> str:
        return f"<SecretBytes {self._length} bytes>"

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __eq__(self, other: object) -> NoReturn:
        raise TypeError("compare secrets with same_as")

    __hash__ = None  # type: ignore[assignment]

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a secret has no pickle or copy form")

    def __copy__(self) -> NoReturn:
        raise TypeError("a secret has no pickle or copy form")

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise TypeError("a secret has no pickle or copy form")


class _Page:
    """One anonymous private page: a map of used slots and the memory itself."""

    __slots__ = ("__weakref__", "_lock", "_map", "_used", "locked", "orphaned")

    def __init__(self, lock: threading.RLock, *, allow_unlocked: bool) -> None:
        self._lock = lock
        self._used = bytearray(PAGE_BYTES // SLOT_BYTES)
        self._map = mmap.mmap(-1, PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.orphaned = False
        self.locked = _mlock(self._map)
        if not self.locked and not allow_unlocked:
            self._map.close()
            raise _no_lock()
        self._map.madvise(mmap.MADV_DONTDUMP)
        self._map.madvise(_MADV_WIPEONFORK)
        _every_page.add(self)

    def view(self, offset: int, length: int) -> memoryview:
        return memoryview(self._map)[offset : offset + length]

    def take(self, length: int) -> int | None:
        slots = _slots(length)
        first = self._used.find(bytes(slots))
        if first < 0:
            return None
        self._used[first : first + slots] = b"\1" * slots
        return first * SLOT_BYTES

    def give_back(self, offset: int, length: int, *, reusable: bool) -> None:
        with self._lock:
            if not self.orphaned:
                self._map[offset : offset + length] = bytes(length)
                first, slots = offset // SLOT_BYTES, _slots(length)
                self._used[first : first + slots] = (b"\0" if reusable else b"\2") * slots

    def wipe_all(self) -> None:
        self._map[:] = bytes(PAGE_BYTES)
        self.orphaned = True

    @property
    def in_use(self) -> int:
        return len(self._used) - self._used.count(0)


class KeyPages:
    """Hands out slots of locked pages; takes at most ``pages_max`` pages from the system.

    Raises Refused (``memory-lock``) where the system will not lock a page, unless ``allow_unlocked``.
    """

    def __init__(self, *, pages_max: int = PAGES_MAX_DEFAULT, allow_unlocked: bool = False) -> None:
        self._pages: list[_Page] = []
        self._pages_max = pages_max
        self._allow_unlocked = allow_unlocked
        self._lock = threading.RLock()
        _every_pool.add(self)

    def fill(self, n_bytes: int, write: Callable[[memoryview], object]) -> SecretBytes:
        """A secret whose bytes ``write`` puts straight into the locked memory.  Wiped again where it raises."""
        secret, page, offset = self._take(n_bytes)
        try:
            with page.view(offset, n_bytes) as view:
                write(view)
        except BaseException:
            secret.wipe()
            raise
        return secret

    def put(self, data: Octets) -> SecretBytes:
        """A secret with the bytes of ``data``, which is overwritten where it can be."""

        def write(view: memoryview) -> None:
            view[:] = data

        secret = self.fill(len(data), write)
        if isinstance(data, bytearray) or (isinstance(data, memoryview) and not data.readonly):
            data[:] = bytes(len(data))
        return secret

    def _take(self, n_bytes: int) -> tuple[SecretBytes, _Page, int]:
        if not 0 < n_bytes <= PAGE_BYTES:
            raise Refused.bad_field("secret", f"1 to {PAGE_BYTES} bytes, got {n_bytes}")
        with self._lock:
            for page in reversed(self._pages):
                offset = page.take(n_bytes)
                if offset is not None:
                    return SecretBytes(page, offset, n_bytes), page, offset
            if len(self._pages) >= self._pages_max:
                raise Unavailable("key-memory-full", f"all {self._pages_max} key pages are in use")
            page = _Page(self._lock, allow_unlocked=self._allow_unlocked)
            self._pages.append(page)
            offset = page.take(n_bytes)
            assert offset is not None
            return SecretBytes(page, offset, n_bytes), page, offset

    @property
    def slots_in_use(self) -> int:
        with self._lock:
            return sum(page.in_use for page in self._pages)

    @property
    def slots_max(self) -> int:
        return self._pages_max * (PAGE_BYTES // SLOT_BYTES)

    @property
    def all_locked(self) -> bool:
        return all(page.locked for page in self._pages)

    def wipe_all(self) -> None:
        """Wipe every secret of this pool at once; each refuses to be revealed from then on."""
        with self._lock:
            for page in self._pages:
                page.wipe_all()
            self._pages.clear()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("key pages have no pickle or copy form")


_every_page: weakref.WeakSet[_Page] = weakref.WeakSet()
_every_pool: weakref.WeakSet[KeyPages] = weakref.WeakSet()


def _slots(length: int) -> int:
    return -(-length // SLOT_BYTES)


def _mlock(memory: mmap.mmap) -> bool:
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    return bool(_libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(len(memory))) == 0)


def _no_lock() -> Refused:
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    why = os.strerror(ctypes.get_errno())
    return Refused(
        "memory-lock",
        f"a page for keys cannot be locked ({why}; RLIMIT_MEMLOCK is {limit} bytes): raise the limit",
        field="RLIMIT_MEMLOCK",
    )


def _orphan_in_child() -> None:
    """Another thread may have held the locks at the fork: they are made anew."""
    for page in list(_every_page):
        page.orphaned, page._lock = True, threading.RLock()
    for pool in list(_every_pool):
        pool._pages, pool._lock = [], threading.RLock()


os.register_at_fork(after_in_child=_orphan_in_child)

_process_pages: list[KeyPages] = []


def key_pages() -> KeyPages:
    """The process's own pool, made at first use (or by ``harden_process``)."""
    if not _process_pages:
        _process_pages.append(KeyPages())
    return _process_pages[0]


@dataclass(frozen=True, slots=True)
class Hardening:
    """What ``harden_process`` achieved, for the start-up log and the readiness answer."""

    memory_locked: bool
    memlock_limit_bytes: int  # -1 is unlimited


def harden_process(*, allow_unlocked_memory: bool) -> Hardening:
    """Core dumps off, ptrace by others off, and a probe that pages can be locked; before the first key is loaded.

    The soft limit of locked memory is raised to the hard one first.  Raises Refused (``memory-lock``) where a page
    cannot be locked, unless ``allow_unlocked_memory``; then later pages of ``key_pages()`` may be unlocked too.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise Refused("process-dumpable", "core dumps and ptrace could not be turned off")
    hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))
    probe = KeyPages(pages_max=1, allow_unlocked=allow_unlocked_memory)
    probe.put(bytearray(SLOT_BYTES)).wipe()
    if _process_pages:
        _process_pages[0]._allow_unlocked = allow_unlocked_memory
    else:
        _process_pages.append(KeyPages(allow_unlocked=allow_unlocked_memory))
    return Hardening(memory_locked=probe.all_locked, memlock_limit_bytes=hard)
