//! How far the shutdown is, as a shard's requests see it, and the publications that it waits for: one that was answered with
//! 201 must be in the inbox of every shard that may have a listener before the sessions are closed.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use crate::mesh::ShardId;
use crate::metrics::Metrics;

/// How far the shutdown is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Serving,
    /// The signal has come. Everything is still served, but the health endpoint tells proxies to use other servers.
    Stopping,
    /// Sessions are being closed. An answer closes its connection, and a new session gets its disconnect message at once.
    Draining,
}

/// Set when a new publication may reach no session any more. Shared by all shards and the control thread.
#[derive(Clone, Default)]
pub struct PublicationsEnd(Arc<AtomicBool>);

impl PublicationsEnd {
    /// The control thread calls this before it tells the shards to close sessions.
    pub fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// If this is false after a publication was put into the inboxes, the publication stands before the order to close in
    /// each of them.
    fn has_come(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// The shutdown of one shard.
pub struct Shutdown {
    shard: ShardId,
    metrics: Arc<Metrics>,
    stage: Cell<Stage>,
    publications_end: PublicationsEnd,
    /// Publications that have begun are finished; new ones are refused.
    publications_closed: Cell<bool>,
    /// Requests whose head has been accepted and that are not in the inboxes yet.
    publications_under_way: Cell<usize>,
    /// The control thread, when it waits for the last of them.
    publications_done: RefCell<Option<mpsc::Sender<ShardId>>>,
}

/// A publication under way, until it is in the inboxes.
pub struct PublicationGuard(Rc<Shutdown>);

impl Shutdown {
    pub fn new(
        shard: ShardId,
        metrics: Arc<Metrics>,
        publications_end: PublicationsEnd,
    ) -> Rc<Self> {
        Rc::new(Self {
            shard,
            metrics,
            stage: Cell::new(Stage::Serving),
            publications_end,
            publications_closed: Cell::default(),
            publications_under_way: Cell::default(),
            publications_done: RefCell::default(),
        })
    }

    /// The signal has come.
    pub fn begin(&self) {
        self.stage.set(Stage::Stopping);
    }

    /// Sessions are being closed from now on.
    pub fn begin_drain(&self) {
        self.stage.set(Stage::Draining);
    }

    pub fn has_begun(&self) -> bool {
        self.stage.get() != Stage::Serving
    }

    pub fn is_draining(&self) -> bool {
        self.stage.get() == Stage::Draining
    }

    /// Refuses new publications from now on. Answers on `done` when those that have begun are in the inboxes.
    pub fn finish_publications(&self, done: mpsc::Sender<ShardId>) {
        self.publications_closed.set(true);
        *self.publications_done.borrow_mut() = Some(done);
        self.report_publications();
    }

    /// Begins a publication; `None` when it comes too late.
    pub fn begin_publication(self: &Rc<Self>) -> Option<PublicationGuard> {
        if self.publications_closed.get() || self.reaches_nobody() {
            return None;
        }
        self.publications_under_way
            .set(self.publications_under_way.get() + 1);
        Some(PublicationGuard(Rc::clone(self)))
    }

    /// Whether the connections of requests are closed after their answers, so that the next request goes to another server.
    pub fn closes_connections(&self) -> bool {
        self.is_draining() || self.publications_closed.get()
    }

    fn report_publications(&self) {
        if self.publications_under_way.get() == 0
            && let Some(done) = self.publications_done.take()
        {
            // The control thread may have given up waiting.
            let _ = done.send(self.shard);
        }
    }

    /// Whether a publication made now may reach no session. In a slow drain some sessions stay open for a while and still
    /// get it.
    fn reaches_nobody(&self) -> bool {
        let clients = || self.metrics.shards.iter().map(|it| it.clients_num.value());
        self.publications_end.has_come() || self.is_draining() && clients().sum::<i64>() <= 0
    }
}

impl PublicationGuard {
    /// Whether the shutdown overtook this publication, so that some sessions may not get it.
    pub fn is_late(&self) -> bool {
        self.0.reaches_nobody()
    }
}

impl Drop for PublicationGuard {
    fn drop(&mut self) {
        let under_way = &self.0.publications_under_way;
        under_way.set(under_way.get() - 1);
        self.0.report_publications();
    }
}
