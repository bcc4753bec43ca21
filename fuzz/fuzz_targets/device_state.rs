// SPDX-License-Identifier: BSD-2-Clause

//! Saved states that no device has saved.
#![no_main]

bhyve_fuzz::target!(device_state);
