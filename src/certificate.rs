//! The certificate while the server runs: SIGHUP makes the server read its files again; log and metrics say until when it is
//! valid.
//!
//! Everything here runs on the control thread. `net::tls` reads the files; the shards ask `net::tls` for the certificate of
//! each new connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use crate::metrics::{Metrics, TlsMetrics};
use crate::net::tls::{ServerTls, Standing, Validity};

/// The log warns when less than this is left. Automatic renewal usually happens 30 days before the end.
const NOTICE: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// A request to read the files again. The signal thread makes it, the control thread takes it. Requests made before one is
/// taken count as one request.
#[derive(Debug, Clone, Default)]
pub struct ReloadRequest(Arc<AtomicBool>);

impl ReloadRequest {
    /// Returns true when no request was waiting: only then the caller has to tell the control thread.
    pub fn make(&self) -> bool {
        !self.0.swap(true, Ordering::SeqCst)
    }

    /// Must be called before the files are read, so that a signal that comes during the reading makes a new request.
    pub fn take(&self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

/// Called once at the start: sets the metric, logs until when the certificate is valid, and warns if that is soon.
pub fn announce(tls: &ServerTls, metrics: &Metrics) {
    set_expiry(tls, metrics);
    if let Some(validity) = tls.validity() {
        let path = tls.cert_path();
        tracing::info!(
            context = "tls",
            "SSL certificate {path} is valid until {}",
            validity.not_after
        );
    }
    warn_of_dates(tls);
}

/// Reads the files again. Without TLS there is nothing to read, and that is no error: operators send SIGHUP to all servers
/// alike.
pub fn reload(tls: Option<&ServerTls>, metrics: &Metrics) {
    let Some(tls) = tls else {
        tracing::info!("SIGHUP: nothing to reload, there is no ssl_cert");
        return;
    };
    let result = tls.reload();
    if let Some(counts) = &metrics.tls {
        let count = match &result {
            Ok(()) => &counts.reloads_total,
            Err(_) => &counts.failed_reloads_total,
        };
        count.add(1);
    }
    set_expiry(tls, metrics);
    let path = tls.cert_path();
    let until = tls.validity().map_or(String::new(), |validity| {
        format!(", valid until {}", validity.not_after)
    });
    match result {
        Ok(()) => tracing::info!(
            context = "tls",
            "SSL certificate {path} reloaded for new connections{until}"
        ),
        Err(error) => tracing::error!(
            context = "tls",
            %error,
            "failed to reload SSL certificate: the one in use stays{until}; repair the files and send SIGHUP again"
        ),
    }
    warn_of_dates(tls);
}

fn set_expiry(tls: &ServerTls, metrics: &Metrics) {
    let expiry = tls
        .validity()
        .map_or(TlsMetrics::EXPIRY_UNKNOWN, |validity| validity.not_after.0);
    if let Some(metrics) = &metrics.tls {
        metrics.certificate_expiry.set(expiry);
    }
}

/// Clients refuse a certificate that has expired or is not valid yet. Without this log line the operator would see no cause.
fn warn_of_dates(tls: &ServerTls) {
    let path = tls.cert_path();
    let Some(validity) = tls.validity() else {
        return;
    };
    let Validity {
        not_before,
        not_after,
    } = validity;
    match validity.standing(SystemTime::now(), NOTICE) {
        Standing::Valid => {}
        Standing::NotYetValid => tracing::warn!(
            context = "tls",
            "SSL certificate {path} is not valid before {not_before}: clients refuse it until then; check the clock of this machine"
        ),
        Standing::EndsSoon => tracing::warn!(
            context = "tls",
            "SSL certificate {path} expires at {not_after}: renew it and send SIGHUP"
        ),
        Standing::Expired => tracing::warn!(
            context = "tls",
            "SSL certificate {path} has expired at {not_after}: clients refuse it; renew it and send SIGHUP"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_made_before_one_is_taken_are_one() {
        let request = ReloadRequest::default();
        let other = request.clone();
        assert!(request.make());
        assert!(!other.make());
        other.take();
        assert!(request.make());
    }
}
