// SPDX-License-Identifier: BSD-2-Clause

//! A device in the hands of the machine, and where in its life cycle it is.

use super::{Checkpointed, SaveError, SavedBytes, SavedState, StateError};
use crate::external::External;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Instant;

/// Where a device is in its life cycle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It is there, and has not been let go yet.
    Built,
    /// It serves the guest.
    Running,
    /// It takes in no new work.
    Paused,
    /// Nothing is in flight either.
    Quiesced,
    /// It is off its bus.
    Detached,
}

/// What the machine does with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Reset,
    Resume,
    Pause,
    Quiesce,
    Save,
    Restore,
    Detach,
}

impl Phase {
    /// The phase that a step leads to; none if the step is not one that may be taken. The table is in the documentation of
    /// [`super`].
    fn after(self, step: Step) -> Option<Self> {
        match (self, step) {
            (Self::Built | Self::Running, Step::Reset) => Some(self),
            (Self::Built | Self::Paused | Self::Quiesced, Step::Resume) => Some(Self::Running),
            (Self::Built | Self::Running, Step::Pause) => Some(Self::Paused),
            (Self::Paused, Step::Quiesce) => Some(Self::Quiesced),
            (Self::Quiesced, Step::Save | Step::Restore) => Some(self),
            // A rest may outlast the machine, which another thread takes apart: its checkpoint then fails for the VM that is gone.
            (Self::Detached, Step::Pause | Step::Quiesce | Step::Save | Step::Resume) => Some(self),
            (Self::Built | Self::Running | Self::Paused | Self::Quiesced, Step::Detach) => {
                Some(Self::Detached)
            }
            _ => None,
        }
    }
}

/// A device of a machine.
pub struct Unit {
    device: Arc<dyn Checkpointed>,
    phase: Mutex<Phase>,
}

impl Unit {
    /// A device that has just been built.
    pub fn new(device: Arc<dyn Checkpointed>) -> Self {
        Self {
            device,
            phase: Mutex::new(Phase::Built),
        }
    }

    /// Notes a step. One that may not be taken is a bug of the machine's.
    fn step(&self, step: Step) {
        let mut phase = self.phase.lock();
        let after = phase.after(step);
        debug_assert!(
            after.is_some(),
            "{}: {step:?} while {:?}",
            self.name(),
            *phase
        );
        *phase = after.unwrap_or(*phase);
    }

    /// See [`super::Device::name`].
    pub fn name(&self) -> &str {
        self.device.name()
    }

    /// See [`super::Device::reset`].
    pub fn reset(&self) {
        self.step(Step::Reset);
        self.device.reset();
    }

    /// See [`super::Device::pause`].
    pub fn pause(&self) {
        self.step(Step::Pause);
        self.device.pause();
    }

    /// See [`super::Device::quiesce`].
    pub fn quiesce(&self, deadline: Instant) -> bool {
        let quiesced = self.device.quiesce(deadline);
        if quiesced {
            self.step(Step::Quiesce);
        }
        quiesced
    }

    /// See [`Checkpointed::save`].
    pub fn save(&self) -> Result<SavedState, SaveError> {
        self.step(Step::Save);
        self.device.save()
    }

    /// See [`Checkpointed::restore`].
    pub fn restore(&self, saved: &SavedBytes) -> Result<(), StateError> {
        self.step(Step::Restore);
        self.device.restore(saved)
    }

    /// See [`super::Device::resume`].
    pub fn resume(&self) {
        self.step(Step::Resume);
        self.device.resume();
    }

    /// The device is off its bus; nothing is done with it any more.
    pub fn detached(&self) {
        self.step(Step::Detach);
    }

    /// See [`super::Device::externals`].
    pub fn externals(&self) -> Vec<&dyn External> {
        self.device.externals()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{Device, Persist, SavedLayout};
    use serde::{Deserialize, Serialize};
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::time::Duration;

    /// Remembers what is done with it.
    #[derive(Default)]
    struct Recorder {
        steps: Mutex<Vec<&'static str>>,
        busy: bool,
    }

    #[derive(Serialize, Deserialize)]
    struct Nothing;

    impl SavedLayout for Nothing {
        const KIND: &'static str = "nothing";
        const VERSION: u32 = 1;
    }

    impl Recorder {
        fn note(&self, step: &'static str) {
            self.steps.lock().push(step);
        }
    }

    impl Device for Recorder {
        fn name(&self) -> &str {
            "recorder"
        }
        fn pause(&self) {
            self.note("pause");
        }
        fn quiesce(&self, _deadline: Instant) -> bool {
            self.note("quiesce");
            !self.busy
        }
        fn resume(&self) {
            self.note("resume");
        }
        fn reset(&self) {
            self.note("reset");
        }
    }

    impl Persist for Recorder {
        type State = Nothing;

        fn capture(&self) -> Result<Nothing, SaveError> {
            let Self { steps: _, busy: _ } = self;
            self.note("capture");
            Ok(Nothing)
        }
        fn apply(&self, Nothing: Nothing) -> Result<(), StateError> {
            self.note("apply");
            Ok(())
        }
    }

    fn unit(busy: bool) -> (Unit, Arc<Recorder>) {
        let device = Arc::new(Recorder {
            busy,
            ..Recorder::default()
        });
        (Unit::new(device.clone()), device)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(1)
    }

    fn take(unit: &Unit, step: Step) {
        match step {
            Step::Reset => unit.reset(),
            Step::Resume => unit.resume(),
            Step::Pause => unit.pause(),
            Step::Quiesce => assert!(unit.quiesce(soon())),
            Step::Save => drop(unit.save().unwrap()),
            Step::Restore => {
                let saved = SavedState::encode(&Nothing).unwrap();
                unit.restore(&saved.into()).unwrap();
            }
            Step::Detach => unit.detached(),
        }
    }

    #[cfg(debug_assertions)]
    /// What leads from a new device to each phase, and what may be done with it there.
    const PHASES: [(&[Step], &[Step]); 5] = {
        use Step::*;
        [
            (&[], &[Reset, Resume, Pause, Detach]),
            (&[Resume], &[Reset, Pause, Detach]),
            (&[Resume, Pause], &[Resume, Quiesce, Detach]),
            (&[Pause, Quiesce], &[Resume, Save, Restore, Detach]),
            (&[Detach], &[Pause, Quiesce, Save, Resume]),
        ]
    };
    #[cfg(debug_assertions)]
    const STEPS: [Step; 7] = {
        use Step::*;
        [Reset, Resume, Pause, Quiesce, Save, Restore, Detach]
    };

    #[cfg(debug_assertions)]
    #[test]
    fn each_step_is_taken_where_it_may_be_and_nowhere_else() {
        for (way, allowed) in PHASES {
            for step in STEPS {
                let (unit, _) = unit(false);
                way.iter().for_each(|step| take(&unit, *step));
                let taken = catch_unwind(AssertUnwindSafe(|| take(&unit, step))).is_ok();
                assert_eq!(taken, allowed.contains(&step), "{step:?} after {way:?}");
            }
        }
    }

    #[test]
    fn a_restore_goes_through_the_steps_that_a_checkpoint_does() {
        let (unit, device) = unit(false);
        let way = {
            use Step::*;
            [
                Pause, Quiesce, Restore, Resume, Pause, Quiesce, Save, Resume,
            ]
        };
        way.iter().for_each(|step| take(&unit, *step));
        let restore = ["pause", "quiesce", "apply", "resume"];
        let save = ["pause", "quiesce", "capture", "resume"];
        assert_eq!(*device.steps.lock(), [restore, save].concat());
    }

    #[test]
    fn a_device_that_does_not_come_to_rest_goes_on() {
        let (unit, device) = unit(true);
        unit.resume();
        unit.pause();
        assert!(!unit.quiesce(soon()));
        if cfg!(debug_assertions) {
            let saved = catch_unwind(AssertUnwindSafe(|| unit.save().is_ok()));
            assert!(saved.is_err(), "it is still at work");
        }
        unit.resume();
        assert_eq!(
            *device.steps.lock(),
            ["resume", "pause", "quiesce", "resume"]
        );
    }
}
