// SPDX-License-Identifier: BSD-2-Clause

//! The VM handle (`lib/libvmmapi/vmmapi.c`): how a VM is made, found and ended. What is asked of it is in a module for each
//! subject.

mod cpus;
mod devices;
mod interrupts;
mod memory;
mod snapshot;
mod stats;

use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use ::vmm::Errno;
use vmm_abi::*;
use zerocopy::{FromBytes, IntoBytes, KnownLayout};

use crate::backend::standin::{self, Release};
use crate::backend::system::Host;
use crate::backend::{Backend, Kernel, Kind, Lifetime, Remote, Soft};
use crate::control::{ControlError, client_rundir};
use crate::error::{Error, Result};
use crate::mem::{GuestMemory, MemFlags};
use crate::vcpu::Vcpu;

/// Which back end to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// The kernel's vmm(4) where there is one, else the software vmm.
    #[default]
    Auto,
    /// The kernel's vmm(4) or nothing.
    Kernel,
    /// The software vmm.
    Soft,
    /// The kernel back end on a stand-in for FreeBSD, for tests.
    StandIn(Release),
}

/// How a VM is created.
#[derive(Debug, Clone, Default)]
pub struct CreateOptions {
    /// Which back end to use.
    pub backend: Choice,
    /// The software vmm's options.
    pub soft: ::vmm::Options,
}

/// How a VM is found.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Which back end to use.
    pub backend: Choice,
    /// Where control sockets are, if not in the default directory.
    pub rundir: Option<PathBuf>,
}

struct VmShared {
    name: String,
    backend: Arc<dyn Backend>,
    memory: GuestMemory,
    /// Set once, with the memory.
    memflags: OnceLock<MemFlags>,
    /// Names of the counters, fetched when they are first asked for.
    stat_names: Mutex<Option<Vec<String>>>,
}

/// A virtual machine. Cloning gives another handle to the same VM.
///
/// # Errors
///
/// Each request can fail with what its own documentation names, and with `ENXIO` if the VM has been destroyed. A VM in another
/// process is reached through its control socket, once for each request: the request then fails with the socket's error as
/// well (`ECONNREFUSED` and `ENOENT` if the process is gone, `EPROTO` if it answers something else, `EOPNOTSUPP` for what cannot
/// be asked over a socket). The errno is in the host's numbering.
#[derive(Clone)]
pub struct Vm {
    inner: Arc<VmShared>,
}

impl Vm {
    /// `vm_create` and `vm_open`: makes a VM of this name.
    ///
    /// # Errors
    ///
    /// `EEXIST` if there is a VM of this name; `EINVAL` for a name that is empty, too long or no file name; `EACCES` or `EPERM`
    /// without the privilege, and in a jail without `allow.vmm`; `ENOENT` with [`Choice::Kernel`] if the system has no vmm(4); `ENXIO` if the
    /// host's processor cannot run VMs; `EOPNOTSUPP` on FreeBSD 13; `ENOMEM` for want of a thread or memory.
    pub fn create(name: &str, options: &CreateOptions) -> Result<Self> {
        Self::create_for(name, options, Lifetime::Destroyed)
    }

    /// The same, for a VM that the kernel may destroy when this process ends (`VMMAPI_OPEN_CREATE_DESTROY_ON_CLOSE`).
    ///
    /// # Errors
    ///
    /// As [`Self::create`]; for a VM that ends with its maker on FreeBSD 14 also what fork(2) fails with.
    pub fn create_for(name: &str, options: &CreateOptions, lifetime: Lifetime) -> Result<Self> {
        let kernel = |system| {
            Kernel::create(system, name, lifetime)
                .map(|kernel| Arc::new(kernel) as Arc<dyn Backend>)
        };
        let soft = || match Soft::create(name, options.soft.clone()) {
            Ok(soft) => Ok(Arc::new(soft) as Arc<dyn Backend>),
            Err(errno) => Err(Error::new("vm_create", name, errno)),
        };
        let backend = match options.backend {
            Choice::Kernel => kernel(Arc::new(Host))?,
            Choice::Soft => soft()?,
            Choice::StandIn(release) => kernel(standin::system(release, &options.soft))?,
            // No /dev/vmmctl and no hw.vmm.create: the system has no vmm(4), or it is not loaded.
            Choice::Auto => match kernel(Arc::new(Host)) {
                Err(error) if error.errno == Errno::ENOENT => soft()?,
                result => result?,
            },
        };
        Ok(Self::with_backend(name, backend))
    }

    /// `vm_open`: finds a VM that exists, in the kernel, in this process, or behind its control socket.
    ///
    /// # Errors
    ///
    /// `ENOENT` if there is no such VM; `EINVAL` for a name that is no file name; `EPERM` or `EACCES` if it is another user's;
    /// `EOPNOTSUPP` on FreeBSD 13, and for a control socket whose VM is the kernel's. A socket that answers otherwise than expected
    /// is `EPROTO`.
    pub fn open(name: &str, options: &OpenOptions) -> Result<Self> {
        let kernel =
            |system| Kernel::open(system, name).map(|kernel| Arc::new(kernel) as Arc<dyn Backend>);
        let backend = match options.backend {
            Choice::Kernel => kernel(Arc::new(Host))?,
            Choice::Soft => Self::open_soft(name, options)?,
            Choice::StandIn(release) => {
                kernel(standin::system(release, &::vmm::Options::default()))?
            }
            Choice::Auto => match kernel(Arc::new(Host)) {
                Err(error) if error.errno == Errno::ENOENT => Self::open_soft(name, options)?,
                result => result?,
            },
        };
        Ok(Self::with_backend(name, backend))
    }

    fn open_soft(name: &str, options: &OpenOptions) -> Result<Arc<dyn Backend>> {
        if let Ok(soft) = Soft::open(name) {
            return Ok(Arc::new(soft));
        }
        let remote =
            client_rundir(options.rundir.as_deref()).and_then(|rundir| Remote::open(&rundir, name));
        match remote {
            Ok(remote) => Ok(Arc::new(remote)),
            // A socket without a listener is left over from a VM that is gone.
            Err(ControlError::System { errno, .. })
                if matches!(errno.0, libc::ECONNREFUSED | libc::ENOENT) =>
            {
                Err(Error::new("vm_open", name, Errno::ENOENT))
            }
            Err(error) => Err(Error::new(
                "vm_open",
                format!("{name} ({error})"),
                error.errno(),
            )),
        }
    }

    /// A handle to the VM that `backend` serves.
    pub fn with_backend(name: &str, backend: Arc<dyn Backend>) -> Self {
        let inner = VmShared {
            name: name.to_owned(),
            backend,
            memory: GuestMemory::default(),
            memflags: OnceLock::new(),
            stat_names: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The VM's name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Which back end serves it.
    pub fn kind(&self) -> Kind {
        self.inner.backend.kind()
    }

    /// Whether its processors are the software vmm's, be it in another process or behind a stand-in for a kernel.
    pub fn is_software(&self) -> bool {
        self.inner.backend.is_software()
    }

    /// Ticks per second of the guest's TSC; none if that is not known.
    pub fn tsc_hz(&self) -> Option<u64> {
        self.inner.backend.tsc_hz()
    }

    /// The back end that serves it.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.inner.backend
    }

    /// `vm_destroy`: removes the VM; requests to it fail with `ENXIO` from then on.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the VM is gone already; `EPERM` without the privilege; in a sandbox `ECAPMODE`, unless this handle has made the
    /// VM.
    pub fn destroy(&self) -> Result<()> {
        self.inner
            .backend
            .destroy()
            .map_err(|errno| Error::new("vm_destroy", self.name(), errno))
    }

    /// `vm_vcpu_open`: a handle to a vCPU, which need not exist yet.
    pub fn vcpu(&self, id: i32) -> Vcpu {
        Vcpu::new(self.clone(), id)
    }

    /// One request; the error names `op` and `what`.
    pub(crate) fn ioctl<T: FromBytes + IntoBytes + KnownLayout>(
        &self,
        op: &'static str,
        request: u64,
        arg: &mut T,
        what: impl FnOnce() -> String,
    ) -> Result<()> {
        self.ioctl_buffers(op, request, arg, &mut [], what)
    }

    /// One request with pointers.
    pub(crate) fn ioctl_buffers<T: FromBytes + IntoBytes + KnownLayout>(
        &self,
        op: &'static str,
        request: u64,
        arg: &mut T,
        buffers: &mut [&mut [u8]],
        what: impl FnOnce() -> String,
    ) -> Result<()> {
        let result = self
            .inner
            .backend
            .ioctl(request, arg.as_mut_bytes(), buffers);
        result.map_err(|errno| Error::new(op, what(), errno))
    }

    /// `vm_suspend`: stops all vCPUs for the reason `how`, `VM_SUSPEND_*`.
    ///
    /// # Errors
    ///
    /// `EALREADY` if they are stopped, for whichever reason; `EINVAL` for a reason that does not exist.
    pub fn suspend(&self, how: i32) -> Result<()> {
        self.ioctl("vm_suspend", VM_SUSPEND, &mut VmSuspend { how }, || {
            format!("reason {how}")
        })
    }

    /// `vm_reinit`: resets a suspended VM.
    ///
    /// # Errors
    ///
    /// `EBUSY` unless VM_RUN has reported of every active vCPU that the VM is suspended.
    pub fn reinit(&self) -> Result<()> {
        self.ioctl("vm_reinit", VM_REINIT, &mut (), || self.name().to_owned())
    }
}

impl std::fmt::Debug for Vm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vm")
            .field("name", &self.inner.name)
            .field("kind", &self.kind())
            .finish_non_exhaustive()
    }
}

/// The text before the first NUL.
fn c_string(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
