//! nginx in front of a server: it terminates TLS and passes WebSockets on. One process, so that its memory is one number.

use std::net::SocketAddrV4;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, net::TcpStream};

use tempfile::TempDir;

use crate::process::{self, KernelMemory, Memory};
use crate::sys::Cpu;
use crate::target::{Target, free_address};
use crate::tls::Certificate;

/// Distributions install it in /usr/sbin, which is not in the PATH of every user.
const PROGRAMS: [&str; 2] = ["nginx", "/usr/sbin/nginx"];
const START_PATIENCE: Duration = Duration::from_secs(10);

/// A running nginx. Dropping it stops it.
pub struct Nginx {
    pub address: SocketAddrV4,
    child: Child,
    _folder: TempDir,
}

impl Nginx {
    /// The nginx of this machine, if there is one.
    pub fn program() -> Option<&'static str> {
        PROGRAMS.into_iter().find(|program| {
            let version = Command::new(program)
                .arg("-v")
                .stderr(Stdio::null())
                .status();
            version.is_ok_and(|status| status.success())
        })
    }

    /// Starts nginx on the CPUs of the server behind it, in the same memory group.
    ///
    /// # Panics
    /// When nginx does not start, because then nothing can be measured.
    pub fn start(
        program: &str,
        target: &Target,
        certificate: &Certificate,
        upstream: SocketAddrV4,
        group: Option<&KernelMemory>,
    ) -> Self {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let address = free_address();
        let file = folder.path().join("nginx.conf");
        fs::write(&file, configuration(address, upstream, certificate))
            .expect("a file can be written");
        let mut command = Command::new(program);
        command.arg("-p").arg(folder.path()).arg("-c").arg(&file);
        command.args(["-e", "stderr"]);
        process::enter(&mut command, target.cpus(), group);
        let child = command.spawn().expect("nginx starts");
        let begun = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(
                begun.elapsed() < START_PATIENCE,
                "nginx does not accept connections"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        Self {
            address,
            child,
            _folder: folder,
        }
    }

    pub fn memory(&self) -> Memory {
        process::memory(self.child.id())
    }

    pub fn cpu(&self) -> Cpu {
        process::cpu(self.child.id())
    }
}

/// The usual configuration for WebSockets, with as many connections as this machine's limit on open files allows.
fn configuration(
    address: SocketAddrV4,
    upstream: SocketAddrV4,
    certificate: &Certificate,
) -> String {
    let (cert, key) = certificate.files();
    format!(
        "daemon off;
master_process off;
pid nginx.pid;
worker_rlimit_nofile 20000;
events {{ worker_connections 19000; }}
http {{
  access_log off;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  server {{
    listen {address} ssl backlog=4096;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_certificate {cert};
    ssl_certificate_key {key};
    location / {{
      proxy_pass http://{upstream};
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection upgrade;
      proxy_set_header Host $host;
      proxy_read_timeout 1h;
    }}
  }}
}}
",
        cert = cert.display(),
        key = key.display(),
    )
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // nginx has no state to save, so SIGKILL does no harm.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
