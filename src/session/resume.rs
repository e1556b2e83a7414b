//! A session that ends and comes back: what is kept of it, and how a new one continues it. Source: contract/extended.md §5.

use crate::broker::sessions::{SessionSnapshot, SubscriptionSnapshot};
use crate::hub::{Hub, Marks};
use crate::protocol::reply::Reply;
use crate::session::Session;
use crate::session::step::{Context, Step};

impl Session {
    /// What a restore needs.
    pub fn snapshot(&self, hub: &Hub, slot: u32) -> SessionSnapshot {
        let subscriptions = hub.identifiers(slot).into_iter();
        SessionSnapshot {
            identifiers: self.identifiers().into(),
            cstate: self.cstate().clone(),
            istates: self.istates().to_vec(),
            subscriptions: subscriptions
                .map(|identifier| subscription(hub, slot, identifier))
                .collect(),
            wants_disconnect: self.wants_disconnect,
        }
    }

    /// Continues an earlier session. The app is not asked, and no token is checked.
    pub fn restore(
        &mut self,
        context: &mut Context<'_>,
        snapshot: SessionSnapshot,
        steps: &mut Vec<Step>,
    ) {
        self.set_identifiers(&snapshot.identifiers);
        self.authenticated = true;
        self.wants_disconnect = snapshot.wants_disconnect;
        if !context.has_rpc {
            self.drop_env();
        }
        self.restore_states(snapshot.cstate, snapshot.istates);
        let mut identifiers = Vec::with_capacity(snapshot.subscriptions.len());
        for subscription in snapshot.subscriptions {
            self.resubscribe(context, &subscription);
            identifiers.push(subscription.identifier);
        }
        steps.push(Step::Register);
        let sid = self.sid().into();
        steps.push(Step::Send(Reply::RestoredWelcome { sid, identifiers }));
    }

    fn resubscribe(&mut self, context: &mut Context<'_>, subscription: &SubscriptionSnapshot) {
        let identifier = &*subscription.identifier;
        self.change(context, identifier, |_, context| {
            let (hub, slot) = (&mut *context.hub, context.slot);
            hub.subscribe(slot, identifier);
            // Marks belong to the first stream of a subscription.
            let is_marked = |(_, marks): &&(Box<str>, Marks)| *marks != Marks::default();
            for (stream, marks) in subscription.streams.iter().filter(is_marked) {
                hub.attach(slot, identifier, stream);
                hub.mark(slot, identifier, *marks);
            }
            for (stream, _) in &subscription.streams {
                hub.attach(slot, identifier, stream);
            }
        });
    }
}

fn subscription(hub: &Hub, slot: u32, identifier: &str) -> SubscriptionSnapshot {
    let marked = hub.marks(slot, identifier);
    let marks_of = |stream: &str| match marked {
        Some((marks, marked_stream)) if marked_stream == stream => marks,
        _ => Marks::default(),
    };
    let streams = hub.streams_of(slot, identifier).into_iter();
    SubscriptionSnapshot {
        identifier: identifier.into(),
        streams: streams
            .map(|stream| (stream.into(), marks_of(stream)))
            .collect(),
    }
}
