// SPDX-License-Identifier: BSD-2-Clause

//! NUMA domains (`bhyve_parse_numa_domain` of `usr.sbin/bhyve/bhyverun.c`): understood, and not built.

use super::OptError;
use crate::config::{Config, Var, variables};

variables! {
    /// A domain.
    pub static VARIABLES;
    const _: Option<String> = Var::new("size", "Its memory.").not_built(NOT_BUILT);
    const _: Option<String> = Var::new("cpus", "Its processors.").not_built(NOT_BUILT);
    const _: Option<String> =
        Var::new("domain_policy", "Where the host takes its memory from.").not_built(NOT_BUILT);
}

const NOT_BUILT: &str = "NUMA domains (-n) need a boot ROM, which is not supported";
const MAX_DOMAINS: u8 = 8;

/// Takes the argument of `-n`: `id=N,size=S,cpus=LIST[,domain_policy=P]`.
pub(super) fn parse(config: &Config, value: &str) -> Result<(), OptError> {
    let invalid =
        |what: &str| OptError::Invalid(format!("invalid NUMA configuration '{value}': {what}"));
    let mut id = None;
    let mut cpus: Option<String> = None;
    let mut rest = Vec::new();
    for field in value.split(',') {
        let is_list = field
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'-');
        match (field.split_once('='), &mut cpus) {
            (Some(("id", text)), _) => {
                let number: u8 = text.parse().map_err(|_| invalid("bad id"))?;
                id = Some(number).filter(|id| *id < MAX_DOMAINS);
            }
            (Some(("cpus", text)), cpus) => *cpus = Some(text.to_owned()),
            (Some((name @ ("size" | "domain_policy"), text)), _) => rest.push((name, text)),
            // A list of CPUs has commas of its own.
            (None, Some(cpus)) if is_list => {
                cpus.push(',');
                cpus.push_str(field);
            }
            _ => return Err(invalid("unknown field")),
        }
    }
    let id = id.ok_or_else(|| invalid("id is missing or out of range"))?;
    let node = config.node(&format!("domains.{id}"));
    node.set("cpus", &cpus.ok_or_else(|| invalid("cpus is missing"))?)?;
    for (name, text) in rest {
        node.set(name, text)?;
    }
    Ok(())
}
