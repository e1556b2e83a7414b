//! The scripted Rails app: answers RPC calls, remembers every one and complains about each deviation from `contract/rpc.md`
//! §2–§4 when the test ends.

mod answers;
mod contract;
mod rules;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use serde_json::Value;

use super::app::{App, Caller, Reply, Request};
use super::keys;
use super::wait::PATIENCE;
pub use answers::{Answer, Framing, Gate};
use contract::{Contract, check_body};
pub use rules::{CURRENT_USER, WELCOME, confirmation, echo, rejection};

/// By which the app's log tells the check at the start from a client. The Ruby side looks at the path alone.
const CHECK_QUERY: &str = "?ringcable=start-check";

/// One RPC call as it arrived.
#[derive(Debug, Clone)]
pub struct Call {
    pub number: usize,
    /// Which TCP connection carried it, counted from 0.
    pub connection: usize,
    /// `connect`, `command` or `disconnect`.
    pub method: String,
    pub sid: String,
    pub headers: Vec<(String, String)>,
    pub raw: String,
    pub body: Value,
    pub started: Instant,
    /// The caller closed the connection before the answer.
    pub aborted: bool,
}

impl Call {
    /// `subscribe`, `unsubscribe`, `message`; empty for connect and disconnect.
    pub fn command(&self) -> &str {
        self.body["command"].as_str().unwrap_or_default()
    }

    pub fn identifier(&self) -> &str {
        self.body["identifier"].as_str().unwrap_or_default()
    }

    pub fn data(&self) -> &str {
        self.body["data"].as_str().unwrap_or_default()
    }

    pub fn url(&self) -> &str {
        self.body["env"]["url"].as_str().unwrap_or_default()
    }

    /// A forwarded header of the client.
    pub fn forwarded(&self, name: &str) -> Option<&str> {
        self.body["env"]["headers"][name].as_str()
    }

    /// A header of the RPC request itself.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// `connect`, `disconnect`, or the command and its identifier: enough to compare whole sequences.
    pub fn summary(&self) -> String {
        match self.method.as_str() {
            "command" => format!("{} {}", self.command(), self.identifier()),
            other => other.to_owned(),
        }
    }
}

type Rule = Box<dyn Fn(&Call) -> Option<Answer> + Send + Sync>;

/// The app. Dropping it fails the test when a call was not as the contract says.
pub struct Rails {
    shared: Arc<Shared>,
    app: App,
}

struct Shared {
    contract: Contract,
    rules: Mutex<Vec<Arc<Rule>>>,
    check_answer: Mutex<Answer>,
    state: Mutex<State>,
    changed: Condvar,
    /// Connections before this one are never answered again.
    frozen_before: AtomicUsize,
}

#[derive(Default)]
struct State {
    calls: Vec<Call>,
    violations: Vec<String>,
    running: usize,
    running_max: usize,
    /// Accepted connections that carried a call, and the how many-th of them each is.
    connections: HashMap<usize, usize>,
    /// Requests on connections that are frozen.
    unanswered: usize,
    /// Checks that servers made at their start; they are no calls.
    checks: usize,
    /// Calls are checked and counted but not kept: for load tests.
    forgetful: bool,
    begun: usize,
}

impl Rails {
    /// The simple app at `/_anycable`, behind the token that [`keys::SECRET`] gives.
    pub fn start() -> Self {
        Self::start_with("/_anycable", Some(&keys::rpc_token(keys::SECRET)))
    }

    pub fn start_with(base_path: &str, token: Option<&str>) -> Self {
        let shared = Arc::new(Shared {
            contract: Contract {
                base_path: base_path.trim_end_matches('/').to_owned(),
                token: token.map(str::to_owned),
            },
            rules: Mutex::new(Vec::new()),
            check_answer: Mutex::new(Answer::status(422, "Empty request body")),
            state: Mutex::default(),
            changed: Condvar::new(),
            frozen_before: AtomicUsize::new(0),
        });
        let script = Arc::clone(&shared);
        let app = App::start(move |request, caller| script.take(request, caller));
        Self { shared, app }
    }

    /// What `--rpc_host` gets.
    pub fn url(&self) -> String {
        format!("{}{}", self.app.url(), self.shared.contract.base_path)
    }

    /// Answers calls for which `rule` gives something; the newest rule is asked first, the simple app last.
    pub fn on(&self, rule: impl Fn(&Call) -> Option<Answer> + Send + Sync + 'static) {
        self.shared
            .rules
            .lock()
            .expect("not poisoned")
            .push(Arc::new(Box::new(rule)));
    }

    pub fn on_connect(&self, answer: Answer) {
        self.on(move |call| (call.method == "connect").then(|| answer.clone()));
    }

    /// The answer to the check at the start of a server. By default that of the Ruby side when path and token are right.
    pub fn on_check(&self, answer: Answer) {
        *self.shared.check_answer.lock().expect("not poisoned") = answer;
    }

    pub fn on_disconnect(&self, answer: Answer) {
        self.on(move |call| (call.method == "disconnect").then(|| answer.clone()));
    }

    pub fn on_command(&self, command: &'static str, identifier: &str, answer: Answer) {
        let identifier = identifier.to_owned();
        self.on(move |call| {
            (call.command() == command && call.identifier() == identifier).then(|| answer.clone())
        });
    }

    /// Confirms subscribes to `identifier` with these streams.
    pub fn streams(&self, identifier: &str, streams: &[&str]) {
        self.on_command(
            "subscribe",
            identifier,
            Answer::confirm(identifier, streams),
        );
    }

    pub fn calls(&self) -> Vec<Call> {
        self.shared.state().calls.clone()
    }

    /// [`Call::summary`] of every call so far, in the order they arrived.
    pub fn summaries(&self) -> Vec<String> {
        self.shared
            .state()
            .calls
            .iter()
            .map(Call::summary)
            .collect()
    }

    pub fn calls_to(&self, method: &str) -> Vec<Call> {
        self.shared
            .state()
            .calls
            .iter()
            .filter(|call| call.method == method)
            .cloned()
            .collect()
    }

    /// Waits until `probe` finds what it looks for among the calls.
    pub fn wait_for<T>(&self, what: &str, mut probe: impl FnMut(&[Call]) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.shared.state();
        loop {
            if let Some(found) = probe(&state.calls) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let seen: Vec<String> = state.calls.iter().map(Call::summary).collect();
            assert!(
                !left.is_zero(),
                "waited {PATIENCE:?} in vain for {what}; calls: {seen:?}"
            );
            state = self
                .shared
                .changed
                .wait_timeout(state, left)
                .expect("not poisoned")
                .0;
        }
    }

    /// Waits for `count` calls of `method` and gives them.
    pub fn wait_for_calls(&self, method: &str, count: usize) -> Vec<Call> {
        self.wait_for(&format!("{count} {method} calls"), |calls| {
            let found: Vec<Call> = calls
                .iter()
                .filter(|call| call.method == method)
                .cloned()
                .collect();
            (found.len() >= count).then_some(found)
        })
    }

    /// Waits for the call of `command` for `identifier`.
    pub fn wait_for_command(&self, command: &str, identifier: &str) -> Call {
        self.wait_for(&format!("{command} {identifier}"), |calls| {
            calls
                .iter()
                .find(|call| call.command() == command && call.identifier() == identifier)
                .cloned()
        })
    }

    /// From now on calls are checked and counted, but not kept.
    pub fn forget_calls(&self) {
        self.shared.state().forgetful = true;
    }

    /// How many calls have arrived, kept or not.
    pub fn calls_begun(&self) -> usize {
        self.shared.state().begun
    }

    /// The largest number of calls that were being answered at one time.
    pub fn parallel_calls_max(&self) -> usize {
        self.shared.state().running_max
    }

    pub fn calls_running(&self) -> usize {
        self.shared.state().running
    }

    /// How many servers have checked this app at their start.
    pub fn checks(&self) -> usize {
        self.shared.state().checks
    }

    /// Connections that carried a call.
    pub fn connections_opened(&self) -> usize {
        self.shared.state().connections.len()
    }

    /// Closes every connection and refuses new ones, but keeps the port.
    pub fn stop(&self) {
        self.app.stop();
    }

    /// Listens again on the same port.
    pub fn restart(&self) {
        self.app.restart();
    }

    /// Ends every connection, as an app does that is being restarted behind a keep-alive pool.
    pub fn close_connections(&self) {
        self.app.close_connections();
    }

    /// Waits for a request on a frozen connection.
    pub fn wait_for_unanswered(&self) {
        let state = self.shared.state();
        let waited = self
            .shared
            .changed
            .wait_timeout_while(state, PATIENCE, |state| state.unanswered == 0);
        assert!(
            !waited.expect("not poisoned").1.timed_out(),
            "no request on a frozen connection"
        );
    }

    /// Ends every connection with a reset.
    pub fn reset_connections(&self) {
        self.app.reset_connections();
    }

    /// All connections that are open now stay open, and nobody is there any more: what a frozen process looks like while the
    /// name points to another one already, which serves every new connection.
    pub fn freeze_connections(&self) {
        let accepted = self.app.accepted();
        self.shared.frozen_before.store(accepted, Ordering::SeqCst);
    }
}

impl Drop for Rails {
    fn drop(&mut self) {
        let state = self.shared.state();
        if thread::panicking() {
            let calls: Vec<&String> = state.calls.iter().map(|call| &call.raw).collect();
            eprintln!(
                "--- calls of the app\n{calls:#?}\n--- violations\n{:#?}",
                state.violations
            );
        } else {
            assert!(
                state.violations.is_empty(),
                "calls that break the contract: {:#?}",
                state.violations
            );
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, request: &Request, caller: &Caller<'_>) -> Reply {
        if request.connection < self.frozen_before.load(Ordering::SeqCst) {
            self.state().unanswered += 1;
            self.changed.notify_all();
            return Reply::Silence;
        }
        if is_check(request) {
            let answer = self.note_check(request, caller);
            return if answer.wait(caller) {
                answer.into_reply()
            } else {
                Reply::Silence
            };
        }
        let call = self.begin(request, caller);
        let answer = self.answer(&call);
        let caller_is_there = answer.wait(caller);
        self.end(&call, !caller_is_there);
        if caller_is_there {
            answer.into_reply()
        } else {
            Reply::Silence
        }
    }

    /// A check must be like a call in everything but its body.
    fn note_check(&self, request: &Request, caller: &Caller<'_>) -> Answer {
        let violations =
            self.contract
                .check_request(request, &caller.authority(), "connect", CHECK_QUERY);
        let mut state = self.state();
        state.violations.extend(violations);
        state.checks += 1;
        drop(state);
        self.changed.notify_all();
        self.check_answer.lock().expect("not poisoned").clone()
    }

    fn begin(&self, request: &Request, caller: &Caller<'_>) -> Call {
        let raw = String::from_utf8_lossy(&request.body).into_owned();
        let method = request
            .line()
            .split(' ')
            .nth(1)
            .and_then(|target| target.rsplit('/').next());
        let method = method
            .unwrap_or_default()
            .split('?')
            .next()
            .unwrap_or_default()
            .to_owned();
        let body = serde_json::from_str(&raw).unwrap_or(Value::Null);
        let mut violations = self
            .contract
            .check_request(request, &caller.authority(), &method, "");
        violations.extend(check_body(&method, &raw, &body));
        let mut state = self.state();
        let next = state.connections.len();
        let call = Call {
            number: state.begun,
            connection: *state.connections.entry(request.connection).or_insert(next),
            sid: request
                .header("x-anycable-meta-sid")
                .unwrap_or_default()
                .to_owned(),
            method,
            headers: request
                .headers()
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            raw,
            body,
            started: Instant::now(),
            aborted: false,
        };
        let told = violations
            .into_iter()
            .map(|text| format!("{text} in {} {}", request.line(), call.raw));
        state.violations.extend(told);
        state.running += 1;
        state.running_max = state.running_max.max(state.running);
        state.begun += 1;
        if !state.forgetful {
            state.calls.push(call.clone());
        }
        drop(state);
        self.changed.notify_all();
        call
    }

    fn end(&self, call: &Call, aborted: bool) {
        let mut state = self.state();
        state.running -= 1;
        if let Some(kept) = state.calls.get_mut(call.number) {
            kept.aborted = aborted;
        }
        drop(state);
        self.changed.notify_all();
    }

    fn answer(&self, call: &Call) -> Answer {
        let rules: Vec<Arc<Rule>> = self
            .rules
            .lock()
            .expect("not poisoned")
            .iter()
            .rev()
            .cloned()
            .collect();
        rules
            .iter()
            .find_map(|rule| rule(call))
            .unwrap_or_else(|| rules::simple_app(call))
    }
}

/// The check that a server makes at its start: a Connect without a body.
fn is_check(request: &Request) -> bool {
    request.body.is_empty() && request.header("x-anycable-meta-sid") == Some("ringcable-check")
}
