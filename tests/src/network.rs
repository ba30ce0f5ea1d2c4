//! A network of its own for a cluster: a bridge, and a network namespace for each host. Packets between two hosts can be
//! made to vanish, in one direction or both, while all other traffic goes on. Needs root and iproute2.
//!
//! Packets vanish because the sending host is told a hardware address that nobody has: neither side learns anything, as
//! when a switch drops them. The machine itself is the host `outside`; nothing leaves the machine.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail, ensure};

/// The machine itself: where the test runs.
pub const OUTSIDE: &str = "outside";

/// Names of namespaces begin with this, the test's process id, and the host.
const PREFIX: &str = "tidemill-e2e";
const NOBODY: &str = "02:00:00:00:00:fe";

/// The bridge and its hosts. Dropped, they are gone.
#[derive(Debug)]
pub struct Network {
    process: u32,
    /// Index i has the address `….(i+1)`; the first is the machine itself.
    hosts: Vec<String>,
}

impl Network {
    /// Makes a bridge with these hosts. `None`, with the reason on the screen, where that cannot be done at all.
    ///
    /// # Errors
    /// When the bridge can be made and a host cannot.
    pub fn create(hosts: &[String]) -> anyhow::Result<Option<Self>> {
        remove_leftovers();
        let process = std::process::id();
        let mut network = Self {
            process,
            hosts: vec![OUTSIDE.to_owned()],
        };
        let bridge = network.bridge();
        if let Err(reason) = ip(&["link", "add", &bridge, "type", "bridge"]) {
            println!("skipped: a network of namespaces needs root and iproute2 ({reason:#})");
            return Ok(None);
        }
        let own = format!("{}/24", network.address(OUTSIDE)?);
        ip(&["address", "add", &own, "dev", &bridge])?;
        ip(&["link", "set", &bridge, "up"])?;
        for host in hosts {
            network.add(host)?;
        }
        Ok(Some(network))
    }

    fn add(&mut self, host: &str) -> anyhow::Result<()> {
        let namespace = self.namespace(host);
        ip(&["netns", "add", &namespace])?;
        self.hosts.push(host.to_owned());
        let near = format!("tm{}-{}", self.process, self.hosts.len());
        let bridge = self.bridge();
        ip(&[
            "link", "add", &near, "type", "veth", "peer", "name", "eth0", "netns", &namespace,
        ])?;
        ip(&["link", "set", &near, "master", &bridge, "up"])?;
        let address = format!("{}/24", self.address(host)?);
        let inside = |arguments: &[&str]| ip(&[&["-n", &namespace], arguments].concat());
        inside(&["address", "add", &address, "dev", "eth0"])?;
        inside(&["link", "set", "eth0", "up"])?;
        inside(&["link", "set", "lo", "up"])
    }

    /// The hosts, without the machine itself.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.hosts.iter().skip(1).map(String::as_str)
    }

    /// A host's address.
    ///
    /// # Errors
    /// When there is no such host.
    pub fn address(&self, host: &str) -> anyhow::Result<String> {
        let index = self.hosts.iter().position(|known| known == host);
        let index = index.with_context(|| format!("there is no host {host}"))?;
        // Networks for measuring devices (RFC 2544): nobody routes them.
        Ok(format!("198.19.{}.{}", self.process % 256, index + 1))
    }

    /// What a command begins with that is to run on a host.
    #[must_use]
    pub fn launcher(&self, host: &str) -> Vec<String> {
        let namespace = self.namespace(host);
        ["ip", "netns", "exec", &namespace]
            .map(str::to_owned)
            .into()
    }

    /// A command that runs `program` on a host.
    #[must_use]
    pub fn command(&self, host: &str, program: &Path) -> Command {
        let launcher = self.launcher(host);
        let mut command = Command::new(&launcher[0]);
        command.args(&launcher[1..]).arg(program);
        command
    }

    /// Lets every packet from one host to another vanish; the other direction stays as it is.
    ///
    /// # Errors
    /// When there is no such host.
    pub fn cut_one_way(&self, from: &str, to: &str) -> anyhow::Result<()> {
        let to = self.address(to)?;
        let change = ["neighbour", "replace", &to, "lladdr", NOBODY];
        let lasting = ["nud", "permanent", "dev"];
        self.on(from, &[&change[..], &lasting].concat())
    }

    /// Lets every packet between two hosts vanish.
    ///
    /// # Errors
    /// When there is no such host.
    pub fn cut(&self, one: &str, other: &str) -> anyhow::Result<()> {
        self.cut_one_way(one, other)?;
        self.cut_one_way(other, one)
    }

    /// Lets every packet between one host and all others vanish; the test still reaches it.
    ///
    /// # Errors
    /// When there is no such host.
    pub fn isolate(&self, host: &str) -> anyhow::Result<()> {
        let others = self.hosts().filter(|other| *other != host);
        others
            .into_iter()
            .try_for_each(|other| self.cut(host, other))
    }

    /// Lets all packets through again.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn heal(&self) -> anyhow::Result<()> {
        for host in &self.hosts {
            for other in self.hosts.iter().filter(|other| *other != host) {
                let address = self.address(other)?;
                // Most pairs were never cut, and some have never spoken.
                let forget = ["neighbour", "delete", &address, "dev"];
                self.on(host, &forget).ok();
            }
        }
        Ok(())
    }

    /// Runs `ip …  DEVICE` on a host, with its own device.
    fn on(&self, host: &str, arguments: &[&str]) -> anyhow::Result<()> {
        if host == OUTSIDE {
            return ip(&[arguments, &[&self.bridge()]].concat());
        }
        let namespace = self.namespace(host);
        ip(&[&["-n", &namespace], arguments, &["eth0"]].concat())
    }

    fn namespace(&self, host: &str) -> String {
        format!("{PREFIX}-{}-{host}", self.process)
    }

    fn bridge(&self) -> String {
        bridge(self.process)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in self.hosts.iter().skip(1) {
            // The devices go with their namespaces.
            ip(&["netns", "delete", &self.namespace(host)]).ok();
        }
        ip(&["link", "delete", &self.bridge()]).ok();
    }
}

fn bridge(process: u32) -> String {
    format!("tmbr{process}")
}

/// Removes what tests left that were killed.
fn remove_leftovers() {
    let Ok(output) = Command::new("ip").args(["netns", "list"]).output() else {
        return;
    };
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let name = line.split(' ').next().unwrap_or_default();
        let process = name.strip_prefix(PREFIX).and_then(|rest| {
            rest.strip_prefix('-')?
                .split('-')
                .next()?
                .parse::<u32>()
                .ok()
        });
        if let Some(process) = process
            && fs::metadata(format!("/proc/{process}")).is_err()
        {
            ip(&["netns", "delete", name]).ok();
            ip(&["link", "delete", &bridge(process)]).ok();
        }
    }
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip").args(arguments).output();
    let output = output.context("`ip` cannot be run")?;
    ensure!(
        output.status.success(),
        "`ip {}` failed: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    if !output.stderr.is_empty() {
        bail!(
            "`ip {}`: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::process::Stdio;
    use std::time::Duration;

    use super::*;
    use crate::wait_for;

    const LIMIT: Duration = Duration::from_secs(10);

    /// One packet from host `a` to the test arrives, vanishes, arrives again.
    #[test]
    fn packets_vanish_one_way_and_come_back() {
        let hosts = ["a".to_owned(), "b".to_owned()];
        let Some(network) = Network::create(&hosts).expect("all or nothing") else {
            return;
        };
        let address = network.address(OUTSIDE).expect("it is a host");
        let socket = UdpSocket::bind((address.as_str(), 0)).expect("a free port");
        socket
            .set_read_timeout(Some(Duration::from_millis(200)))
            .expect("a time above 0");
        let port = socket.local_addr().expect("it is bound").port();
        let script = format!("echo hello > /dev/udp/{address}/{port}");
        let send = || {
            let mut command = network.command("a", Path::new("bash"));
            let status = command.args(["-c", &script]).stdin(Stdio::null()).status();
            assert!(status.expect("there is bash").success(), "no error is seen");
        };
        let came = || socket.recv(&mut [0; 16]).is_ok();
        let comes = |when: &str| {
            let sent = wait_for("a packet", LIMIT, || {
                send();
                Ok(came().then_some(()))
            });
            sent.expect(when);
        };

        comes("the way is open");
        network.cut_one_way(OUTSIDE, "a").expect("hosts");
        comes("only the other direction is cut");
        network.cut_one_way("a", OUTSIDE).expect("hosts");
        // Those that were sent before and came late.
        while came() {}
        send();
        assert!(!came(), "it has vanished");
        network.heal().expect("it can");
        comes("the way is open again");
        assert!(network.cut("a", "nowhere").is_err());
    }
}
