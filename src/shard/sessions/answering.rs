//! The answer to a client over plain HTTP. Nothing is written before everything in its request is decided (`deciding`): then
//! either the head of a 200 goes out in front of what was queued meanwhile, or a refusal goes out alone.

use std::rc::Rc;
use std::time::SystemTime;

use super::Sessions;
use super::connection::Life;
use super::formats::EventForm;
use crate::endpoints::response::Headers;
use crate::mesh::{Charge, ShardBudget};
use crate::protocol::disconnect::Close;
use crate::shard::outbox::frame::{Frame, FrameKind};
use crate::wire::http_response::{encode_response, encode_stream_head};

/// A request for server-sent events that has been read and not been answered.
#[derive(Debug)]
pub struct EventRequest {
    pub form: EventForm,
    /// The headers of the answer, whatever it is.
    pub headers: Headers,
}

/// What is kept of a request until it is answered.
pub(super) struct Opening {
    headers: Headers,
    /// For the headers.
    pub charge: Charge,
}

impl Opening {
    pub fn new(headers: Headers, budget: &Rc<ShardBudget>) -> Self {
        let texts = headers.iter().map(|(_, value)| value.len());
        let bytes = size_of::<Self>() + size_of_val(&*headers) + texts.sum::<usize>();
        Self {
            headers,
            charge: budget.hold_anyway(bytes),
        }
    }

    fn fields(&self) -> Vec<(&str, &str)> {
        let fields = self.headers.iter();
        fields.map(|(name, value)| (*name, &**value)).collect()
    }

    /// The head of the 200 that the events follow.
    fn accepted(&self, form: EventForm) -> Frame {
        let mut bytes = Vec::new();
        encode_stream_head(&self.fields(), &date(), form.chunked, &mut bytes);
        Frame::in_answer(bytes, FrameKind::Head, 0)
    }

    /// The whole answer of a refusal.
    fn refused(&self, status: u16) -> Frame {
        let mut bytes = Vec::new();
        encode_response(
            status,
            &self.fields(),
            b"",
            &date(),
            false,
            false,
            &mut bytes,
        );
        Frame::in_answer(bytes, FrameKind::Head, 0)
    }
}

pub(super) fn date() -> String {
    httpdate::fmt_http_date(SystemTime::now())
}

impl Sessions {
    /// Answers 200. What was queued for the client goes out behind it. Nothing happens when the request is answered.
    pub(super) fn accept_request(&mut self, slot: u32) {
        let connection = &mut self.table.connections[slot as usize];
        let format = connection.format;
        let Some(held) = &mut connection.held else {
            return;
        };
        let (Some(opening), Some(form)) = (held.opening.take(), format.encoding.event_form())
        else {
            return;
        };
        if held.is_over() {
            connection.held = None;
        }
        connection.life = Life::Open;
        self.writer
            .begin_answer(&mut self.table, slot, opening.accepted(form));
        self.common.counters().sse_clients_num.add(1);
        // The flush at the end of the turn writes it.
        self.writer
            .send_last(&mut self.table, slot, Frame::flush_only());
    }

    /// The refusal of a request that is not answered yet. `None` when it is answered.
    pub(super) fn refusal(&self, slot: u32, close: &Close) -> Option<Frame> {
        let held = self.table.connections[slot as usize].held.as_ref()?;
        if let Some(reading) = &held.reading {
            return reading.refusal(self.common.read_policy(), close, &date());
        }
        let status = if *close == Close::AUTH_FAILED {
            401
        } else {
            400
        };
        Some(held.opening.as_ref()?.refused(status))
    }
}
