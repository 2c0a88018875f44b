//! debug
#[test]
fn dbg12() {
    let h = integration_tests::floors::record_writer(12).history;
    eprintln!("{:?}", h.rules);
    for r in &h.runs { eprintln!("RUN {} began {:?} failed {:?}", r.number, r.began, r.failed); }
    for s in &h.stalls { eprintln!("{s:?}"); }
    for c in h.commits.iter().filter(|c| c.at > 24000 && c.at < 31000) {
        eprintln!("C {} run {} decided {} at {} {:?} {} over {:?} n {}", c.revision, c.run, c.decided, c.at, c.cause, c.actor, c.overrides, c.changes.len());
    }
    for a in h.asked.iter().filter(|a| a.sent.1 > 26000 && a.sent.1 < 30100) { eprintln!("A {} {:?} sent {:?} answer {:?}", a.number, std::mem::discriminant(&a.ask), a.sent, a.answer); }
}
