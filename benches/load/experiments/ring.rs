//! Rings for experiments: with each kind of setup, with direct descriptors, with buffers that the kernel chooses.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU16, Ordering::Release};

use io_uring::types::BufRingEntry;
use io_uring::{IoUring, squeue};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::{BorrowedFd, OwnedFd};

/// Entries that are submitted at once.
pub const BATCH: usize = 1024;
const COMPLETIONS: u32 = 16 * 1024;

/// When the kernel runs the part of a request that must run in the thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setup {
    /// At once: it interrupts the thread.
    Plain,
    /// At the next system call of the thread.
    Cooperative,
    /// When the thread waits on this ring.
    Deferred,
}

impl Setup {
    pub const ALL: [Self; 3] = [Self::Plain, Self::Cooperative, Self::Deferred];

    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Cooperative => "COOP_TASKRUN",
            Self::Deferred => "DEFER_TASKRUN",
        }
    }
}

/// How a thread sleeps until its ring has completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sleep {
    /// poll(2) on the descriptor of the ring, as a runtime does.
    OnDescriptor,
    /// poll(2) on an eventfd that the ring signals.
    OnEventfd,
    /// In a wait on the ring itself.
    Inside,
}

pub struct Ring {
    pub uring: IoUring,
    sleep: Sleep,
    signal: Option<OwnedFd>,
}

impl Ring {
    pub fn new(setup: Setup, sleep: Sleep) -> Self {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(COMPLETIONS);
        match setup {
            Setup::Plain => &mut builder,
            Setup::Cooperative => builder.setup_single_issuer().setup_coop_taskrun(),
            Setup::Deferred => builder.setup_single_issuer().setup_defer_taskrun(),
        };
        let uring = builder
            .build(BATCH as u32)
            .expect("these experiments need Linux 6.1 and io_uring");
        let signal = (sleep == Sleep::OnEventfd).then(|| {
            let signal = eventfd(0, EventfdFlags::NONBLOCK).expect("an eventfd");
            let submitter = uring.submitter();
            submitter
                .register_eventfd(signal.as_raw_fd())
                .expect("a ring takes an eventfd");
            signal
        });
        Self {
            uring,
            sleep,
            signal,
        }
    }

    /// Registers the sockets; a socket's number is its position in the slice.
    pub fn register(&self, sockets: &[OwnedFd]) {
        let numbers: Vec<RawFd> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
        let submitter = self.uring.submitter();
        submitter
            .register_files(&numbers)
            .expect("a ring takes as many files as a table");
    }

    /// # Safety
    /// The memory that the entry refers to must live until its completion is seen, or until the ring is gone.
    pub unsafe fn push(&mut self, entry: &squeue::Entry) {
        if self.uring.submission().is_full() {
            self.uring.submit().expect("the kernel takes a batch");
        }
        // SAFETY: promised by the caller.
        unsafe { self.uring.submission().push(entry) }.expect("there is room after a submit");
    }

    /// Submits what was pushed and lets the kernel put completions into the queue, without waiting.
    pub fn flush(&mut self) {
        const GET_EVENTS: u32 = 1; // IORING_ENTER_GETEVENTS
        let queued = self.uring.submission().len() as u32;
        let submitter = self.uring.submitter();
        // SAFETY: no signal mask is passed; the entries were vouched for when they were pushed.
        unsafe { submitter.enter::<libc::sigset_t>(queued, 0, GET_EVENTS, None) }
            .expect("the kernel takes a batch");
    }

    /// Submits what was pushed and sleeps until there are completions.
    pub fn wait(&mut self) {
        if self.sleep != Sleep::Inside && !self.uring.submission().is_empty() {
            self.flush();
        }
        match (self.sleep, &self.signal) {
            (Sleep::OnEventfd, Some(signal)) => {
                let _ = poll(&mut [PollFd::new(signal, PollFlags::IN)], None);
                let _ = rustix::io::read(signal, &mut [0; 8]);
                self.flush();
            }
            (Sleep::OnDescriptor, _) => {
                // SAFETY: the ring's descriptor is open as long as the ring.
                let ring = unsafe { BorrowedFd::borrow_raw(self.uring.as_raw_fd()) };
                let _ = poll(&mut [PollFd::new(&ring, PollFlags::IN)], None);
            }
            _ => {
                self.uring
                    .submit_and_wait(1)
                    .expect("the kernel takes a batch");
            }
        }
    }
}

/// Buffers of one size; the kernel chooses one when bytes have come.
pub struct Buffers {
    entries: *mut BufRingEntry,
    memory: Box<[u8]>,
    tail: u16,
}

impl Buffers {
    pub const GROUP: u16 = 7;
    pub const COUNT: u16 = 1024;
    const BYTES: usize = 4096;

    fn layout() -> Layout {
        Layout::array::<BufRingEntry>(usize::from(Self::COUNT))
            .and_then(|layout| layout.align_to(4096))
            .expect("a small array")
    }

    /// Registers buffers; they must outlive the ring's requests.
    pub fn new(ring: &Ring) -> Self {
        // SAFETY: the layout is not empty.
        let entries: *mut BufRingEntry = unsafe { alloc_zeroed(Self::layout()) }.cast();
        if entries.is_null() {
            handle_alloc_error(Self::layout());
        }
        let mut buffers = Self {
            entries,
            memory: vec![0; usize::from(Self::COUNT) * Self::BYTES].into(),
            tail: 0,
        };
        // SAFETY: the entries are aligned to a page and are freed only with this value, which outlives the requests.
        unsafe {
            ring.uring.submitter().register_buf_ring_with_flags(
                entries as u64,
                Self::COUNT,
                Self::GROUP,
                0,
            )
        }
        .expect("a ring takes buffers");
        for buffer in 0..Self::COUNT {
            buffers.give(buffer);
        }
        buffers.publish();
        buffers
    }

    /// Returns a buffer; the kernel sees it after [`Buffers::publish`].
    pub fn give(&mut self, buffer: u16) {
        let at = usize::from(self.tail % Self::COUNT);
        let address = &raw mut self.memory[usize::from(buffer) * Self::BYTES];
        // SAFETY: `at` is inside the array, and the kernel reads an entry only once the tail is behind it.
        let entry = unsafe { &mut *self.entries.add(at) };
        entry.set_addr(address as u64);
        entry.set_len(Self::BYTES as u32);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
    }

    pub fn publish(&self) {
        // SAFETY: the first entry holds the tail that the kernel reads; it is aligned and lives as long as this value.
        unsafe {
            let tail = BufRingEntry::tail(self.entries).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Release);
        }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout; the ring that knew it is gone.
        unsafe { dealloc(self.entries.cast(), Self::layout()) };
    }
}
