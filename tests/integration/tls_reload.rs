//! SIGHUP: certificate and key are read again, and nobody who is connected notices. The reference dies of the signal.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustls::pki_types::CertificateDer;
use rustls::{ALL_VERSIONS, ClientConfig, HandshakeKind, version};

use crate::support::ports::free_port;
use crate::support::rails::echo;
use crate::support::tls::{Certificate, Client, Scene, shown, tls, trusting};
use crate::support::{Rails, Stage};

/// Enough that every shard takes some of them.
const CONNECTIONS: usize = 16;

/// What a new connection to `port` is shown.
fn shown_at(scene: &Scene, config: &Arc<ClientConfig>, port: u16) -> CertificateDer<'static> {
    let shown = shown(&mut tls(config, scene.tcp_to(port))).expect("a handshake");
    shown.expect("a full handshake")
}

/// Trusts both, and never resumes a session, so that it is always shown a certificate.
fn trusting_both(
    old: &CertificateDer<'static>,
    new: &CertificateDer<'static>,
) -> Arc<ClientConfig> {
    let mut config = trusting(&[old, new], ALL_VERSIONS);
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
}

on_both_drivers! {
    fn new_connections_get_the_new_certificate_and_old_sessions_go_on(driver: Driver) {
        let mut scene = Scene::new(driver, &[]);
        let mut old_clients: Vec<Client> = (0..CONNECTIONS).map(|_| scene.client()).collect();
        old_clients.iter_mut().for_each(|client| client.subscribe("A"));
        let (old_config, old_der) = (Arc::clone(&scene.config), scene.certificate.der.clone());
        scene.renew();
        let both = trusting_both(&old_der, &scene.certificate.der);
        for _ in 0..CONNECTIONS {
            assert!(shown_at(&scene, &both, scene.stage.server.port()) == scene.certificate.der);
        }
        let refused = shown(&mut tls(&old_config, scene.tcp())).expect_err("who trusts the old one only");
        assert!(refused.to_string().contains("invalid peer certificate"), "{refused}");
        scene.trust_renewed();
        let mut new_client = scene.client();
        new_client.subscribe("A");
        scene.publish("stream:A", "1");
        assert_eq!(new_client.next_data(), 1);
        for client in &mut old_clients {
            assert_eq!(client.next_data(), 1);
            client.perform("A", "still here");
            assert_eq!(client.next_text(), echo("A", "still here"));
        }
        assert_eq!(scene.sample("ringcable_tls_reloads_total{result=\"ok\"}"), 1);
        assert_eq!(scene.sample("ringcable_tls_reloads_total{result=\"failed\"}"), 0);
        assert_eq!(scene.stage.rails.calls_to("disconnect").len(), 0);
    }

    fn all_listeners_get_the_new_certificate(driver: Driver) {
        let (broadcasts, metrics, api) = (free_port(), free_port(), free_port());
        let args = [
            format!("--http_broadcast_port={broadcasts}"),
            format!("--metrics_port={metrics}"),
            format!("--api_port={api}"),
        ];
        let mut scene = Scene::new(driver, &args.each_ref().map(String::as_str));
        let old_der = scene.certificate.der.clone();
        let ports = [scene.stage.server.port(), broadcasts, metrics, api];
        for port in ports {
            assert!(shown_at(&scene, &scene.config, port) == old_der, "port {port}");
        }
        scene.renew();
        let both = trusting_both(&old_der, &scene.certificate.der);
        for port in ports {
            assert!(shown_at(&scene, &both, port) == scene.certificate.der, "port {port}");
        }
    }

    fn files_that_are_overwritten_in_place_are_read_as_well(driver: Driver) {
        let mut scene = Scene::new(driver, &[]);
        let other = Certificate::new();
        for name in ["cert.pem", "key.pem"] {
            std::fs::copy(other.path(name), scene.certificate.path(name)).expect("a file");
        }
        scene.reload();
        scene.config = Arc::new(other.client_config(ALL_VERSIONS));
        scene.client().expect_pong();
    }

    fn files_that_cannot_be_used_leave_the_old_certificate_in_use(driver: Driver) {
        let mut scene = Scene::new(driver, &[]);
        let mut client = scene.client();
        let path = |name: &str| scene.certificate.path(name);
        let whole = ["cert.pem", "key.pem"].map(|name| (name, std::fs::read(path(name)).expect("a file")));
        let foreign_key = std::fs::read(Certificate::new().path("key.pem")).expect("a file");
        let table: [(&str, Option<&[u8]>, &str); 6] = [
            ("cert.pem", None, "cannot read ssl_cert"),
            ("key.pem", None, "cannot read ssl_key"),
            ("cert.pem", Some(b"rubbish"), "holds no usable PEM certificate"),
            ("key.pem", Some(b""), "holds no usable PEM private key"),
            ("cert.pem", Some(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), "cannot be used together"),
            ("key.pem", Some(&foreign_key), "cannot be used together"),
        ];
        for (number, (name, contents, expected)) in table.into_iter().enumerate() {
            match contents {
                None => std::fs::remove_file(path(name)).expect("the file is there"),
                Some(contents) => std::fs::write(path(name), contents).expect("a file"),
            }
            scene.stage.server.hang_up();
            let stays = "failed to reload SSL certificate: the one in use stays, valid until 4096-01-01T00:00:00Z";
            // A line of an earlier case may name this file as well: the count says that this one is done.
            scene.wait_for_sample("ringcable_tls_reloads_total{result=\"failed\"}", number as i64 + 1);
            let line = scene.stage.server.wait_for_log(&["ERR", stays, expected, name]);
            assert!(line.contains("context=tls"), "{line}");
            for (name, contents) in &whole {
                std::fs::write(path(name), contents).expect("a file");
            }
        }
        assert_eq!(scene.sample("ringcable_tls_reloads_total{result=\"ok\"}"), 0);
        assert_eq!(scene.sample("ringcable_tls_certificate_expiry_seconds"), 67_090_118_400);
        client.expect_pong();
        // And once the files are right again, so is the reload.
        scene.renew();
        scene.trust_renewed();
        scene.client().expect_pong();
    }

    fn sessions_of_the_old_certificate_are_not_resumed(driver: Driver) {
        for version in [&version::TLS12, &version::TLS13] {
            let scene = Scene::new(driver, &[]);
            let config = Arc::new(scene.certificate.client_config(&[version]));
            let kind = || {
                let mut client = Client::over(tls(&config, scene.tcp()));
                client.expect_pong();
                client.socket.get_ref().conn.handshake_kind()
            };
            assert_eq!(kind(), Some(HandshakeKind::Full));
            assert_eq!(kind(), Some(HandshakeKind::Resumed));
            scene.reload();
            assert_eq!(kind(), Some(HandshakeKind::Full));
            assert_eq!(kind(), Some(HandshakeKind::Resumed));
        }
    }

    fn storm_of_reloads_is_not_noticed_by_clients(driver: Driver) {
        let mut scene = Scene::new(driver, &[]);
        let first = scene.certificate.der.clone();
        scene.certificate.renew();
        let config = trusting_both(&first, &scene.certificate.der);
        let over = AtomicBool::new(false);
        let mut clients = Vec::new();
        thread::scope(|scope| {
            scope.spawn(|| {
                // Whichever of the two files a reload finds: a pair, or a mixture that is refused.
                for number in 0..100 {
                    scene.certificate.switch_to(number % 2);
                    scene.stage.server.hang_up();
                    thread::sleep(Duration::from_millis(3));
                }
                over.store(true, Ordering::SeqCst);
            });
            while !over.load(Ordering::SeqCst) {
                let mut client = Client::over(tls(&config, scene.tcp()));
                client.subscribe("A");
                clients.push(client);
            }
        });
        assert!(!clients.is_empty());
        // 99 was odd: the last certificate is the second one.
        scene.reload();
        scene.trust_renewed();
        scene.publish("stream:A", "1");
        for client in &mut clients {
            assert_eq!(client.next_data(), 1);
        }
        let series = |result: &str| format!("ringcable_tls_reloads_total{{result=\"{result}\"}}");
        let reloads = scene.sample(&series("ok")) + scene.sample(&series("failed"));
        // Signals that come during a reload are one.
        assert!((2..=101).contains(&reloads), "{reloads}");
        assert!(scene.sample(&series("ok")) >= 1);
        assert_eq!(scene.metric("clients_num"), clients.len() as i64);
    }

    fn without_tls_there_is_nothing_to_reload(driver: Driver) {
        let stage = Stage::new(driver);
        let mut client = stage.client();
        client.subscribe("A");
        for _ in 0..3 {
            stage.server.hang_up();
        }
        stage.server.wait_for_log(&["INF", "SIGHUP: nothing to reload, there is no ssl_cert"]);
        stage.publish("stream:A", "1");
        assert_eq!(client.next_json()["message"], 1);
        let page = stage.server.get("/metrics").text();
        assert!(!page.contains("tls_reloads") && !page.contains("tls_certificate"), "{page}");
    }

    fn signal_during_the_start_causes_a_reload_after_it(driver: Driver) {
        let certificate = Certificate::new();
        let rails = Rails::start();
        let server = Stage::launch(driver, &rails).args(certificate.args()).spawn_and_hang_up();
        server.wait_for_log(&["INF", " reloaded for new connections"]);
        let log = server.log();
        let place = |text: &str| log.iter().position(|line| line.contains(text)).unwrap_or_else(|| panic!("no {text:?}"));
        assert!(place(" reloaded for new connections") > place("ringcable is ready"), "{log:#?}");
        server.assert_running();
    }

    fn signal_during_the_drain_changes_nothing(driver: Driver) {
        let delay = Duration::from_secs(2);
        let scene = Scene::new(driver, &["--shutdown_delay=2"]);
        let mut client = scene.client();
        let begun = Instant::now();
        scene.stage.server.terminate();
        scene.stage.server.wait_for_log(&["Shutting down..."]);
        for _ in 0..3 {
            scene.stage.server.hang_up();
            // Who connects during the delay is served.
            scene.client().expect_pong();
        }
        assert_eq!(client.next_text(), r#"{"type":"disconnect","reason":"server_restart","reconnect":true}"#);
        assert!(begun.elapsed() >= delay, "the delay was cut to {:?}", begun.elapsed());
        client.expect_close(1001, "Server restart");
        assert_eq!(scene.stage.server.wait_exit().code(), Some(0));
    }

    fn certificate_that_ends_soon_is_warned_about_and_measured(driver: Driver) {
        const EXPIRY: &str = "ringcable_tls_certificate_expiry_seconds";
        let table = [
            (Certificate::valid(-1, 10), Some("expires at "), 10),
            (Certificate::valid(-1, 20), None, 20),
        ];
        for (certificate, warning, days) in table {
            let mut scene = Scene::with(driver, certificate, &[]);
            scene.stage.server.wait_for_log(&["INF", "context=tls", "is valid until 20"]);
            scene.stage.server.wait_for_log(&["ringcable is ready"]);
            let warned = || scene.stage.server.log().into_iter().find(|line| line.contains("WRN") && line.contains("SSL"));
            assert_eq!(warned().is_some(), warning.is_some(), "{:?}", warned());
            assert!(warned().is_none_or(|line| line.contains(warning.unwrap_or_default())));
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            let expected = now.expect("a clock after 1970").as_secs() as i64 + days * 24 * 60 * 60;
            assert!((expected - 60..=expected).contains(&scene.sample(EXPIRY)), "{}", scene.sample(EXPIRY));
            scene.renew();
            scene.trust_renewed();
            assert_eq!(scene.sample(EXPIRY), 67_090_118_400);
        }
    }

    fn certificate_that_clients_refuse_is_warned_about(driver: Driver) {
        let table = [
            (Certificate::valid(-20, -10), "has expired at 20"),
            (Certificate::valid(1, 20), "is not valid before 20"),
        ];
        for (certificate, expected) in table {
            let scene = Scene::with(driver, certificate, &[]);
            scene.stage.server.wait_for_log(&["WRN", "context=tls", "SSL certificate", expected]);
            // Nothing else is wrong with it: who does not look at dates is served.
            scene.stage.server.assert_running();
        }
    }

    fn openssl_sees_the_new_certificate(driver: Driver) {
        let mut scene = Scene::new(driver, &[]);
        for version in ["-tls1_2", "-tls1_3"] {
            let address = scene.stage.server.address().to_string();
            let trusted = scene.certificate.path("cert.pem");
            let output = Command::new("openssl")
                .args(["s_client", version, "-connect", &address, "-servername", "localhost"])
                .args(["-verify_return_error", "-verify_hostname", "localhost", "-brief", "-CAfile"])
                .arg(trusted)
                .stdin(Stdio::null())
                .output();
            let Ok(output) = output else {
                eprintln!("skipped: openssl is not installed");
                return;
            };
            let report = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success() && report.contains("Verification: OK"), "{report}");
            scene.renew();
        }
    }
}
