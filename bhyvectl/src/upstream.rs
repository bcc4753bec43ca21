// SPDX-License-Identifier: BSD-2-Clause

//! Checkpoints that upstream's bhyve writes (`checkpoint_thread` of `usr.sbin/bhyve/snapshot.c`): it answers nothing, and
//! bhyvectl(8) there does not wait. Here the files tell: three of them, the description last, which says how long the others are.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;
use vmmapi::checkpoint::{Directory, MAX_META_SIZE, Storage};

/// How often the files are looked at.
const TICK: Duration = Duration::from_millis(100);
/// How long files must stay as they are to be taken for complete while the peer may still be writing.
const SETTLED: Duration = Duration::from_secs(1);
/// How long nothing may change before a peer that has hung up is taken to have failed.
const SILENCE: Duration = Duration::from_secs(3);
/// How long nothing may change before a peer that is still there is not waited for any more. A bhyve of ours has answered long
/// before, and upstream's writes all the time.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long the VM may stay after its state is written.
const GOING: Duration = Duration::from_secs(60);
const SUFFIXES: [&str; 3] = ["", ".kern", ".meta"];

/// A file at one moment: device, inode, size, and the time of its last change.
type Stamp = (u64, u64, u64, i64, i64);
type Stamps = [Option<Stamp>; 3];

/// The three files of a checkpoint, as they change from what they were at first.
pub struct Files {
    directory: Directory,
    base: String,
    before: Stamps,
    now: Stamps,
    changed: Instant,
    patience: Duration,
}

impl Files {
    /// To be made before the request is sent; `patience` is [`PATIENCE`].
    pub fn watch(directory: Directory, base: &str, patience: Duration) -> Self {
        let mut files = Self {
            directory,
            base: base.to_owned(),
            before: [None; 3],
            now: [None; 3],
            changed: Instant::now(),
            patience,
        };
        files.look();
        files.before = files.now;
        files
    }

    fn open(&self, suffix: &str) -> Option<File> {
        self.directory.open(&format!("{}{suffix}", self.base)).ok()
    }

    fn look(&mut self) {
        let stamp = |suffix| {
            let data = self.open(suffix)?.metadata().ok()?;
            let (dev, ino) = (data.dev(), data.ino());
            Some((dev, ino, data.size(), data.mtime(), data.mtime_nsec()))
        };
        let now = SUFFIXES.map(stamp);
        if now != self.now {
            (self.now, self.changed) = (now, Instant::now());
        }
    }

    /// Why they are not all three new and as long as they are to be.
    fn missing(&self) -> Option<String> {
        let name = |suffix| format!("{}{suffix}", self.base);
        for ((suffix, now), before) in SUFFIXES.into_iter().zip(self.now).zip(self.before) {
            if now.is_none() || now == before {
                return Some(format!("{} was not written", name(suffix)));
            }
        }
        let Some(lengths) = self.lengths() else {
            return Some(format!("{} is not whole", name(".meta")));
        };
        let files = SUFFIXES.into_iter().zip(self.now).zip(lengths);
        files
            .map(|((suffix, stamp), length)| (suffix, stamp.map_or(0, |stamp| stamp.2), length))
            .find(|(_, found, length)| found != length)
            .map(|(suffix, found, length)| {
                format!("{} has {found} bytes, not {length}", name(suffix))
            })
    }

    /// How much of the memory is written, in bytes.
    pub fn written(&self) -> u64 {
        match (self.now[0], self.before[0]) {
            (Some(now), before) if Some(now) != before => now.2,
            _ => 0,
        }
    }

    /// How long memory and structs are, by the description.
    fn lengths(&self) -> Option<[u64; 2]> {
        use std::io::Read;
        let mut text = String::new();
        let file = self.open(".meta")?.take(MAX_META_SIZE);
        std::io::BufReader::new(file)
            .read_to_string(&mut text)
            .ok()?;
        lengths(&serde_json::from_str(&text).ok()?)
    }

    /// Whether there is nothing more to come of a peer that is silent: the files are complete and are not being written any
    /// more, or have not been for a long time.
    pub fn are_settled(&mut self) -> bool {
        self.look();
        let quiet = self.changed.elapsed();
        quiet >= self.patience || quiet >= SETTLED && self.missing().is_none()
    }

    /// Waits for them after the peer has hung up, and brings them to stable storage, which the peer does not.
    pub fn wait(&mut self, show: impl Fn(u64), has_ended: &dyn Fn() -> bool) -> anyhow::Result<()> {
        loop {
            self.look();
            show(self.written());
            let Some(missing) = self.missing() else {
                break;
            };
            if self.changed.elapsed() >= SILENCE {
                let state = if has_ended() {
                    "has ended"
                } else {
                    "does not answer"
                };
                bail!("the VM's bhyve {state}, and {missing}");
            }
            std::thread::sleep(TICK);
        }
        for suffix in SUFFIXES {
            let name = format!("{}{suffix}", self.base);
            let synced = self.directory.open(&name).and_then(|file| file.sync_all());
            synced.with_context(|| format!("sync {name}"))?;
        }
        self.directory.sync().context("sync the directory")
    }
}

/// The lengths that a description of upstream's tells; none if it is not one.
fn lengths(meta: &Value) -> Option<[u64; 2]> {
    // A description of ours has a format, and is complete when its bhyve says so.
    if meta.get("format").is_some() {
        return None;
    }
    let memory = meta.get("basic metadata")?.get("memsize")?.as_u64()?;
    let mut end = 0;
    for list in ["kern_structs", "devices"] {
        for record in meta.get(list)?.as_array()? {
            let offset = record.get("file_offset")?.as_u64()?;
            end = end.max(offset.checked_add(record.get("size")?.as_u64()?)?);
        }
    }
    Some([memory, end])
}

/// Waits until the VM whose state was written is gone.
pub fn wait_for_end(is_gone: impl Fn() -> bool) -> anyhow::Result<()> {
    let end = Instant::now() + GOING;
    while !is_gone() {
        if Instant::now() > end {
            bail!("the state is written, but the VM is still there");
        }
        std::thread::sleep(TICK);
    }
    Ok(())
}
