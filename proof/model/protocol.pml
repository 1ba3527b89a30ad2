/*
 * pgonce's commit protocol, for Spin: one global transaction, its home and its branches, the coordinator, two
 * couriers, and everything that can go wrong with them. `npm run model` checks it; README.md maps it to the
 * code. Every atomic block is one statement as its server carries it out; between two of them anything else may
 * happen.
 *
 * Parts, by flag:
 *   BRANCHES=n      participants besides the home (2 or 3)
 *   CRASHES=n       crashes of the home's server; what else may fail is not counted, see below
 *   COURIERS=n      answers that may be under way at once (2); what was said before is heard by all of them anyway
 *   SQUAT           a stranger may insert a decision row under our id, with an xid of his own
 *   PURGING         couriers carry what proves, purges and audits
 *   FAILOVERS=n     an asynchronous standby of any server takes over and has lost the newest transactions
 *   LIVE            couriers do everything in turn, as src/recovery/recovery.ts, for the liveness check
 *   MUTANT_…        a bug
 *   WITNESS_…       asks whether a state can be reached at all
 *   LIMIT_…         drops an assumption, to show that it is needed
 *
 * Why so little state is enough. What may happen at any time at no cost need not be remembered:
 *
 * - A lost acknowledgement. Whoever waits for an answer may go on without it, always.
 * - A coordinator or courier that dies. The coordinator may stop before each statement; a courier carries nothing of
 *   its own, so its death is an answer that nobody hears. What either had sent but was not carried out yet is the same
 *   process being slow: it stops after it instead.
 * - A crash of a participant's server. It ends open sessions, which may end anyway (a branch that is not prepared
 *   may be refused at any time). PREPARE, COMMIT PREPARED and ROLLBACK PREPARED are flushed before anybody sees
 *   their effect, so nothing that was seen is lost. One that crashed between flush and effect, or that is down
 *   for a while, is one that nobody happened to ask.
 * - PREPAREs are sent back to back. A coordinator that died half way is one whose unsent PREPAREs were refused.
 * - A statement in two steps, durable and then visible, is one step where nothing can be observed in between:
 *   before it is visible it looks like not done (somebody else is "busy", and waits), and a crash then makes it
 *   visible. Only the home's COMMIT is more: there the moments "durable", "row visible" and "not in progress" are
 *   told apart, in that order. Postgres joins the last two; the protocol does not need that.
 * - The questions about outcomes. A home here answers at any time, also what nobody has asked; and what it said is
 *   tried on any branch that is prepared now, which includes those that were listed then.
 * - 55000 (busy) and 42704 (does not exist): the statement had no effect; what the code concludes from it, asks
 *   for evidence, is no more than it may do at any time.
 */

#ifndef BRANCHES
#define BRANCHES 3
#endif
#ifndef CRASHES
#define CRASHES 3
#endif
#ifndef FAILOVERS
#define FAILOVERS 0
#endif
#ifndef COURIERS
#define COURIERS 2
#endif

/* The properties, as they are called in the results. */
mtype = { atomicity, durability, answer, premature, false_alarm, silent_loss }

/* ONLY=property: lets the others pass. A bug may break several; each is asked for the one that it is about. */
#ifdef ONLY
#define IS_ASKED(property) (property == ONLY)
#else
#define IS_ASKED(property) true
#endif
#define REQUIRE(condition, property) \
  if \
  :: (condition) || !IS_ASKED(property) -> skip \
  :: else -> printf("VIOLATED %e\n", property); assert(false) \
  fi

/* A branch, as it stands in its server. */
#define SENT     0 /* work done, evidence inserted, PREPARE on its way or in the socket of a dead coordinator */
#define REFUSED  1 /* never prepared: an error, the tag ROLLBACK, or the session ended */
#define PREPARED 2
#define DONE     3 /* committed; its evidence, inserted by the same transaction, is there */
#define CLEAN    4 /* committed; its evidence has been deleted */
#define UNDONE   5 /* rolled back after it was prepared */
#define LOST     6 /* was prepared; a failover lost that */
byte branch[BRANCHES];

/* The home's own transaction. */
#define ACTIVE  0 /* in progress, no COMMIT carried out yet */
#define DURABLE 1 /* its commit record is flushed; nobody sees it yet */
#define VISIBLE 2 /* its row is visible; its xid is still in progress */
#define OVER    3
byte home = ACTIVE;
bit commit_sent;

/* once.global_transaction: our row, as the others see it. */
#define NONE     0
#define UNPROVEN 1
#define PROVEN   2
#define CONFIRMED 3
byte row = NONE;
/* once.database.purged_xid has reached our xid */
bit purged;

/*
 * What pg_xact_status says of our xid once our transaction is over. After a crash an xid of which nothing was
 * flushed lies in the future again, and a stranger gets it.
 */
#define ENDED     0 /* 'aborted', or too old to tell */
#define COMMITTED 1 /* 'committed': we, or a stranger */
#define FUTURE    2 /* an error: in the future */
#define STRANGER  3 /* 'in progress': a stranger */
byte status = ENDED;

/* The answer to COMMIT that lies in the coordinator's socket. */
#define NOTHING 0
#define COMMIT_TAG 1
#define ERROR 2
byte reply = NOTHING;

byte crashes = CRASHES;
byte failovers = FAILOVERS;

/* once.loss: a bit for each branch. */
byte lost_branch;
byte lost_decision;

/* Of history, for the properties only; nobody in the protocol reads them. */
bit decided;      /* the home has committed */
bit dropped;      /* a failover of the home lost that commit */
bit acknowledged; /* the application was told "committed" */

#ifdef SQUAT
bit squat; /* a row with our id and another xid */
#define SQUATTED (squat == 1)
#else
#define SQUATTED false
#endif

#if FAILOVERS > 0
byte failed;   /* servers that have failed over, each at most once: a bit for each branch, then the home's */
bit aged;      /* the transaction was proven half of `keep` ago */
bit settled;   /* and confirmed the other half ago */
#define FAILED_OVER (failed != 0)
#define HAS_FAILED(i) HAS(failed, i)
#else
#define FAILED_OVER false
#define HAS_FAILED(i) false
#endif

#ifdef MUTANT_ASYNC_HOME
bit soft;      /* the home's commit is visible but not flushed */
#endif
#ifdef MUTANT_STANDBY
bit replicated; /* the standby has the row */
#endif
#ifdef MUTANT_ASYNC_MARK
bit soft;      /* the mark is visible but not flushed */
#endif
#ifdef MUTANT_ASYNC_DELETE
byte soft;     /* deletions of evidence that are not flushed: a bit for each branch */
#endif

#define HAS(mask, i) (((mask) >> (i)) & 1)
#define IS_COMMITTED(i) (branch[i] == DONE || branch[i] == CLEAN)
#define IS_REFUSED(i) (branch[i] == REFUSED)
#define IS_SENT(i) (branch[i] == SENT)
#define IS_PREPARED(i) (branch[i] == PREPARED)
#define IS_DONE(i) (branch[i] == DONE)
#define IS_CLEAN(i) (branch[i] == CLEAN)

#if BRANCHES == 3
#define ANY(p) (p(0) || p(1) || p(2))
#define EVERY(p) (p(0) && p(1) && p(2))
#else
#define ANY(p) (p(0) || p(1))
#define EVERY(p) (p(0) && p(1))
#endif

/* Evidence is inserted by the branch's own transaction: it is there exactly if that committed. */
#ifdef MUTANT_EVIDENCE_OUTSIDE
#define EVIDENT(i) (branch[i] == DONE || branch[i] == PREPARED)
#else
#define EVIDENT(i) (branch[i] == DONE)
#endif

/* "Is it over?" is all that the status is asked: once.branch_outcomes, first statement. */
#define IS_OVER (home == OVER && status != STRANGER)

/* The row with our id and our xid is visible: once.branch_outcomes, second statement. */
#ifdef MUTANT_NO_XID
#define HAS_ROW (row != NONE || SQUATTED)
#else
#define HAS_ROW (row != NONE)
#endif

/*
 * A call, or a session, that a failover of its server breaks: what it began is not continued on the new primary.
 * (A crash would break it, too; that it does not, here, only adds behaviour.)
 */
#if FAILOVERS > 0
#define REMEMBER bit before;
#define CALL(server) before = HAS(failed, server);
#define BROKEN(server) (before != HAS(failed, server))
#define HANG_UP before = 0;
#define AGE aged = 1;
#define SETTLE settled = 1;
#else
#define REMEMBER
#define CALL(server)
#define BROKEN(server) false
#define HANG_UP
#define AGE
#define SETTLE
#endif

/* COMMIT PREPARED and ROLLBACK PREPARED. With them the law is checked: all committed, or all rolled back. */
inline commit_prepared(i) {
  branch[i] = DONE;
  printf("%d: COMMIT PREPARED, branch %d\n", _pid, i);
  REQUIRE(decided, atomicity)
}

inline rollback_prepared(i) {
  branch[i] = UNDONE;
  printf("%d: ROLLBACK PREPARED, branch %d\n", _pid, i);
  REQUIRE((!decided && !ANY(IS_COMMITTED)) || dropped, atomicity);
  REQUIRE(!acknowledged || dropped, durability)
}

/* ---------------------------------------------------------------------------------------------------------- */

/* The home's server: our transaction there, crashes, and strangers that get our xid. */
active proctype Home() {
end:
  do
#ifdef MUTANT_ASYNC_HOME
  :: atomic { home == ACTIVE && commit_sent && !SQUATTED ->
       home = OVER; row = UNPROVEN; status = COMMITTED; reply = COMMIT_TAG; decided = 1; soft = 1;
       printf("home: COMMIT is visible, not flushed\n") }
  :: atomic { soft -> soft = 0; printf("home: flushed\n") }
  :: atomic { soft && crashes > 0 ->
       crashes--; soft = 0; row = NONE; status = FUTURE; decided = 0;
       printf("home: CRASH, our commit is lost\n");
       REQUIRE(!acknowledged, durability) }
#else
  :: atomic { home == ACTIVE && commit_sent && !SQUATTED ->
       home = DURABLE; decided = 1; printf("home: COMMIT is durable\n") }
  :: atomic { home == DURABLE ->
       home = VISIBLE; row = UNPROVEN; printf("home: the decision row is visible\n") }
  :: atomic { home == VISIBLE ->
       home = OVER; status = COMMITTED; reply = COMMIT_TAG; printf("home: COMMIT answered, the xid is over\n") }
#endif
  /*
   * It ends without committing: the connection was lost, idleTimeout, a deferred constraint, the decision row's
   * key is taken by a squatter. If COMMIT was sent, that is its answer.
   */
  :: atomic { home == ACTIVE ->
       home = OVER; status = ENDED;
       if
       :: commit_sent -> reply = ERROR
       :: else
       fi;
       printf("home: rolled back\n") }
  /* A crash: what is flushed stays, what runs is gone, and its xid perhaps free again. */
  :: atomic { crashes > 0 && home != OVER ->
       crashes--;
       if
       :: home == ACTIVE ->
            if
            :: status = ENDED
            :: status = FUTURE
            fi
       :: home == DURABLE -> row = UNPROVEN; status = COMMITTED
       :: home == VISIBLE -> status = COMMITTED
       fi;
       home = OVER;
       printf("home: CRASH, decided: %d\n", decided) }
  :: atomic { crashes > 0 && home == OVER && (status == STRANGER || (status != FUTURE && !decided)) ->
       crashes--;
       if
       :: status = ENDED
       :: status = FUTURE
       fi;
       printf("home: CRASH after the end\n") }
  :: atomic { status == FUTURE -> status = STRANGER; printf("home: a stranger gets our xid\n") }
  :: atomic { status == STRANGER ->
       if
       :: status = COMMITTED
       :: status = ENDED
       fi;
       printf("home: the stranger ends, committed: %d\n", status == COMMITTED) }
#ifdef SQUAT
  /* Anybody can read the id in the gid. Once the home has its row, the key is taken. */
  :: atomic { !squat && !decided -> squat = 1; printf("home: somebody inserts a row under our id\n") }
#endif
#ifdef MUTANT_STANDBY
  :: atomic { row != NONE && !replicated -> replicated = 1; printf("home: replicated\n") }
#endif
#ifdef MUTANT_ASYNC_MARK
  :: atomic { soft -> soft = 0; printf("home: flushed\n") }
  :: atomic { soft && (row == PROVEN || row == CONFIRMED) && crashes > 0 ->
       crashes--; soft = 0; row = row - 1; printf("home: CRASH, the mark is lost\n") }
#endif
  od
}

/* The branches' sessions until they are prepared. PREPARE may be carried out late, or not at all. */
active proctype Sessions() {
end:
  do
#define ARRIVE(i) \
  :: atomic { branch[i] == SENT -> branch[i] = PREPARED; printf("branch %d: PREPARE\n", i) } \
  :: atomic { branch[i] == SENT -> branch[i] = REFUSED; printf("branch %d: not prepared\n", i) }
  ARRIVE(0)
  ARRIVE(1)
#if BRANCHES > 2
  ARRIVE(2)
#endif
#ifdef MUTANT_ASYNC_DELETE
#define SOFTEN(i) \
  :: atomic { HAS(soft, i) -> soft = soft & ~(1 << i); printf("branch %d: flushed\n", i) } \
  :: atomic { HAS(soft, i) && crashes > 0 -> crashes--; soft = soft & ~(1 << i); branch[i] = DONE; \
       printf("branch %d: CRASH, the evidence is back\n", i) }
  SOFTEN(0)
  SOFTEN(1)
#if BRANCHES > 2
  SOFTEN(2)
#endif
#endif
  od
}

/* ---------------------------------------------------------------------------------------------------------- */

/* An answer to PREPARE that says "prepared" was sent, whatever became of the branch since. */
#ifdef MUTANT_TAG
#define IS_ANSWERED(i) (branch[i] != SENT)
#else
#define IS_ANSWERED(i) (branch[i] != SENT && branch[i] != REFUSED)
#endif

#define FINISH(statement, i) \
  :: atomic { branch[i] == PREPARED -> statement(i) }
#if BRANCHES > 2
#define FINISH_EACH(statement) FINISH(statement, 0) FINISH(statement, 1) FINISH(statement, 2)
#else
#define FINISH_EACH(statement) FINISH(statement, 0) FINISH(statement, 1)
#endif

/* commitInTwoPhases: the PREPAREs are on their way. It may stop before each statement, that is, die. */
active proctype Coordinator() {
  bit over;
  REMEMBER

  if
  :: atomic { EVERY(IS_ANSWERED) ->
       commit_sent = 1; printf("coordinator: all prepared, sends COMMIT\n"); goto deciding }
  :: atomic { true -> printf("coordinator: gives up before deciding\n"); goto undo }
  :: goto stop
  fi;

deciding:
  if
  :: atomic { reply == COMMIT_TAG ->
       reply = NOTHING; acknowledged = 1; printf("coordinator: reads COMMIT, acknowledges\n");
       REQUIRE(decided, durability); goto commit }
  :: atomic { reply == ERROR -> reply = NOTHING; printf("coordinator: reads ERROR\n"); goto rollback }
  /* No answer, or FATAL. */
#ifdef MUTANT_LOST_ANSWER
  :: atomic { reply = NOTHING; printf("coordinator: no answer, takes it for aborted\n"); goto rollback }
#else
  :: atomic { reply = NOTHING; printf("coordinator: no answer\n"); goto ask }
#endif
  :: goto stop
  fi;

  /* once.outcome: status, row, mark, each with a newer snapshot. */
ask:
  if
  :: atomic { over = IS_OVER; CALL(BRANCHES) printf("coordinator: asks, over: %d\n", over) }
  :: goto stop
  fi;
  if
  :: atomic { BROKEN(BRANCHES) -> over = 0; HANG_UP goto ask }
  :: atomic { !BROKEN(BRANCHES) && HAS_ROW -> over = 0; HANG_UP acknowledged = 1; printf("coordinator: hears committed\n");
       REQUIRE(decided, durability); goto commit }
  :: atomic { !BROKEN(BRANCHES) && !HAS_ROW && !over -> HANG_UP goto ask }
  :: atomic { !BROKEN(BRANCHES) && !HAS_ROW && over -> over = 0 }
  fi;
  if
  :: atomic { BROKEN(BRANCHES) -> HANG_UP goto ask }
#ifdef MUTANT_NO_MARK
  :: atomic { !BROKEN(BRANCHES) ->
#else
  :: atomic { !BROKEN(BRANCHES) && purged -> HANG_UP printf("coordinator: hears purged\n"); goto stop }
  :: atomic { !BROKEN(BRANCHES) && !purged ->
#endif
       HANG_UP printf("coordinator: hears aborted\n");
       REQUIRE(!decided || dropped, answer); goto rollback }
  fi;

  /* Rolls back only when the home has confirmed that its transaction is over. */
undo:
  if
  :: atomic { home == ACTIVE -> home = OVER; status = ENDED; printf("coordinator: the home is rolled back\n") }
#ifdef REDUNDANT_CONFIRMATION
  :: true
#endif
  :: goto stop
  fi;

rollback:
  do
  FINISH_EACH(rollback_prepared)
  :: break
  od;
  goto stop;

commit:
  do
  FINISH_EACH(commit_prepared)
#ifdef MUTANT_ROLLBACK_AFTER_COMMIT
  :: atomic { ANY(IS_COMMITTED) -> printf("coordinator: one failed, rolls back the rest\n"); goto rollback }
#endif
  :: break
  od;

stop:
  skip
}

/* ---------------------------------------------------------------------------------------------------------- */

/*
 * What was said: questions that a database asked, and answers that another gave. Couriers carry them. A courier may be
 * slow, or die, or be one of several that carry the same; so nothing that was said is ever taken back: whoever it is for
 * may hear it at any later time, any number of times, or never.
 */
bit says_committed; /* once.answer of the home about a branch in doubt: the outcomes */
bit says_aborted;
#ifdef PURGING
byte asked;         /* questions of the home's, that have read its row: a bit for each of these */
#define PROVING    0 /* is the evidence there? The row was not proven. */
#define CONFIRMING 1 /* is it still there? The row was proven half of `keep` ago. */
#define DELETING   2 /* delete it. The row was confirmed the other half ago. */
byte evident[2];    /* answers to both looks: a bit for each branch */
byte missing[2];    /* not prepared, and then no evidence */
byte deleted;       /* answers to DELETING */
byte compared;      /* questions of the audit: the evidence of these branches was read */
byte unknown;       /* the home's answers: there is no such decision */
#endif

#if BRANCHES > 2
#define EACH(option) option(0) option(1) option(2)
#else
#define EACH(option) option(0) option(1)
#endif
#define ALL_BRANCHES ((1 << BRANCHES) - 1)
#define ADD(mask, i) mask = mask | (1 << (i))

/*
 * A courier: anybody who has connections. Any step that what was said allows, in any order; so it is also every courier
 * that died, and all of them together. There are two, since an answer takes two readings, and two may be at it at once.
 *
 * With LIVE it goes through all in turn, as src/recovery/courier.ts, and stops in the middle only at the cost of a
 * crash: the liveness check needs that somebody who runs gets on with it.
 */
#ifdef LIVE
#define THEN(label) goto label
#define DIE :: atomic { crashes > 0 -> crashes--; which = 0; goto idle }
#else
#define THEN(label) goto idle
#define DIE
#endif

/* What once.apply returned: the statement, and the answer that it was made of, are carried as late as all else. */
#define RUN(i) \
  :: atomic { says_committed && IS_PREPARED(i) -> commit_prepared(i); THEN(running) } \
  :: atomic { says_aborted && IS_PREPARED(i) -> rollback_prepared(i); THEN(running) }

/* once.answer about evidence, first statement: the list of prepared transactions. */
#ifdef MUTANT_AUDIT_ORDER
#define LISTED(i) EVIDENT(i)
#else
#define LISTED(i) IS_PREPARED(i)
#endif
#ifdef MUTANT_UNASKED
#define IS_ASKED_FOR(n) true
#else
#define IS_ASKED_FOR(n) HAS(asked, n)
#endif
/* Whoever asks again hears nothing else, unless a standby has taken over since: it need not be tried. */
#define IS_TOLD(i, n) (HAS(evident[n], i) && (HAS(missing[n], i) || !HAS_FAILED(i)))
#define IS_SAID ((says_committed || says_aborted) && (says_committed && says_aborted || !HAS_FAILED(BRANCHES)))
#define LOOK(i, n) \
  :: atomic { IS_ASKED_FOR(n) && !IS_TOLD(i, n) -> \
       which = i; look = n; listed = LISTED(i); CALL(i) \
       printf("%d: branch %d is listed: %d\n", _pid, i, listed); goto evidence }
#ifdef MUTANT_ONE_LOOK
#define LOOKS(i) LOOK(i, PROVING)
#else
#define LOOKS(i) LOOK(i, PROVING) LOOK(i, CONFIRMING)
#endif

/* once.apply of answers about evidence: marks what is evident everywhere, and records what is missing and unmarked. */
#if defined(MUTANT_ANY_LOOK)
#define IS_SEEN(n) ((evident[0] | evident[n]) == ALL_BRANCHES)
#elif defined(MUTANT_SILENT)
#define IS_SEEN(n) (evident[n] != 0 && missing[n] == 0)
#elif defined(MUTANT_PURGE_EARLY)
#define IS_SEEN(n) (n == PROVING || evident[n] == ALL_BRANCHES)
#else
#define IS_SEEN(n) (evident[n] == ALL_BRANCHES)
#endif
#ifdef MUTANT_ASYNC_MARK
#define SOFTEN_MARK soft = 1;
#else
#define SOFTEN_MARK
#endif
#define MARK(n, from, to) \
  :: atomic { IS_SEEN(n) && row == from -> \
       row = to; SOFTEN_MARK \
       printf("%d: marks the decision after look %d\n", _pid, n); \
       REQUIRE(EVERY(IS_COMMITTED) || FAILED_OVER, premature); THEN(purging) }
#if defined(MUTANT_NO_RECHECK)
#define IS_UNMARKED(n) true
#else
#define IS_UNMARKED(n) (row == UNPROVEN || (n == CONFIRMING && row == PROVEN))
#endif
#define RECORD(i, n) \
  :: atomic { HAS(missing[n], i) && !HAS(lost_branch, i) && IS_UNMARKED(n) -> \
       ADD(lost_branch, i); printf("%d: records a lost branch, %d\n", _pid, i); \
       REQUIRE(!IS_COMMITTED(i) || HAS_FAILED(i), false_alarm); THEN(applying) }
#define RECORD_PROVING(i) RECORD(i, PROVING)
#define RECORD_CONFIRMING(i) RECORD(i, CONFIRMING)

/* once.answer that deletes evidence: committed before it is given. */
#ifdef MUTANT_ASYNC_DELETE
#define SOFT_DELETE(i) ADD(soft, i)
#else
#define SOFT_DELETE(i) skip
#endif
#define REMOVE(i) \
  :: atomic { HAS(asked, DELETING) && (!HAS(deleted, i) || IS_DONE(i)) -> \
       ADD(deleted, i); \
       if \
       :: branch[i] == DONE -> branch[i] = CLEAN; SOFT_DELETE(i) \
       :: else \
       fi; \
       printf("%d: deletes the evidence of branch %d\n", _pid, i); \
       REQUIRE(row != UNPROVEN || FAILED_OVER, premature); THEN(purging) }

/* The audit: evidence, then no row, then still evidence. */
#define COMPARE(i) \
  :: atomic { EVIDENT(i) && !HAS(compared, i) -> \
       ADD(compared, i); printf("%d: reads the evidence of branch %d\n", _pid, i); THEN(auditing) }
#define DOUBT(i) \
  :: atomic { HAS(compared, i) && !HAS(unknown, i) && row == NONE -> \
       ADD(unknown, i); printf("%d: no decision for branch %d\n", _pid, i); THEN(auditing) }
#ifdef MUTANT_NO_RECHECK_EVIDENCE
#define IS_STILL_EVIDENT(i) true
#else
#define IS_STILL_EVIDENT(i) EVIDENT(i)
#endif
#define ACCUSE(i) \
  :: atomic { HAS(unknown, i) && !HAS(lost_decision, i) && IS_STILL_EVIDENT(i) -> \
       ADD(lost_decision, i); printf("%d: records a lost decision, branch %d\n", _pid, i); \
       REQUIRE(FAILED_OVER, false_alarm); THEN(auditing) }

/* once.apply of answers about deleted evidence: once.purge. What is not confirmed is never touched. */
#ifdef MUTANT_PURGE_ORDER
#define IS_GONE true
#else
#define IS_GONE (deleted == ALL_BRANCHES)
#endif
#ifdef MUTANT_ONE_LOOK
#define LAST_MARK PROVEN
#else
#define LAST_MARK CONFIRMED
#endif
#define PURGE \
  :: atomic { IS_GONE && row == LAST_MARK -> \
       row = NONE; purged = 1; printf("%d: deletes the decision\n", _pid); \
       REQUIRE(EVERY(IS_CLEAN) || FAILED_OVER, premature); THEN(auditing) }

/* once.ask of the home. */
#define ASK(n) atomic { ADD(asked, n); printf("%d: the home asks %d\n", _pid, n) }

active [COURIERS] proctype Courier() {
  byte which;
  bit look;
  bit listed;
  REMEMBER

idle:
end:
#ifndef LIVE
  if
  :: !IS_SAID -> goto outcome
  EACH(RUN)
#ifdef PURGING
  :: atomic { row == UNPROVEN && !HAS(asked, PROVING) -> ASK(PROVING); goto idle }
  EACH(LOOKS)
  MARK(PROVING, UNPROVEN, PROVEN)
  EACH(RECORD_PROVING)
#ifndef MUTANT_ONE_LOOK
  :: atomic { row == PROVEN && !HAS(asked, CONFIRMING) -> AGE ASK(CONFIRMING); goto idle }
  MARK(CONFIRMING, PROVEN, CONFIRMED)
  EACH(RECORD_CONFIRMING)
  :: atomic { row == CONFIRMED && !HAS(asked, DELETING) -> SETTLE ASK(DELETING); goto idle }
#else
  :: atomic { row == PROVEN && !HAS(asked, DELETING) -> AGE ASK(DELETING); goto idle }
#endif
  EACH(REMOVE)
  PURGE
  EACH(COMPARE)
  EACH(DOUBT)
  EACH(ACCUSE)
#endif
  fi;
#endif

  /* ---- the outcome: once.branch_outcomes, status and then row ---- */
outcome:
  if
#if defined(MUTANT_BY_AGE)
  :: atomic { ANY(IS_PREPARED) -> says_aborted = 1; printf("%d: old enough: aborted\n", _pid); THEN(running) }
  :: atomic { !ANY(IS_PREPARED) && HAS_ROW -> says_committed = 1; THEN(running) }
  :: atomic { !ANY(IS_PREPARED) && !HAS_ROW -> THEN(running) }
#elif defined(MUTANT_ROW_FIRST)
  :: atomic { HAS_ROW -> says_committed = 1; printf("%d: row\n", _pid); THEN(running) }
  :: atomic { !HAS_ROW -> printf("%d: no row\n", _pid) }
#elif defined(MUTANT_STATUS)
  :: atomic { IS_OVER && status == COMMITTED ->
       says_committed = 1; printf("%d: the status is committed\n", _pid); THEN(running) }
  :: atomic { !IS_OVER || status != COMMITTED -> listed = IS_OVER; printf("%d: over: %d\n", _pid, listed) }
#elif defined(MUTANT_STANDBY)
  :: atomic { true -> listed = IS_OVER; printf("%d: over: %d\n", _pid, listed) }
  :: atomic { !replicated ->
       says_aborted = 1; printf("%d: the standby knows neither xid nor row\n", _pid); THEN(running) }
#else
  :: atomic { listed = IS_OVER; CALL(BRANCHES) printf("%d: over: %d\n", _pid, listed) }
#endif
  fi;
  if
#if defined(MUTANT_ROW_FIRST)
  :: atomic { IS_OVER -> says_aborted = 1; printf("%d: over\n", _pid); THEN(running) }
  :: atomic { !IS_OVER -> THEN(running) }
#elif defined(MUTANT_PENDING)
  :: atomic { HAS_ROW -> listed = 0; says_committed = 1; printf("%d: row\n", _pid); THEN(running) }
  :: atomic { !HAS_ROW -> listed = 0; says_aborted = 1; printf("%d: no row\n", _pid); THEN(running) }
#else
  :: atomic { BROKEN(BRANCHES) -> listed = 0; HANG_UP THEN(running) }
  :: atomic { !BROKEN(BRANCHES) && HAS_ROW ->
       listed = 0; HANG_UP says_committed = 1; printf("%d: row, so committed\n", _pid); THEN(running) }
  :: atomic { !BROKEN(BRANCHES) && !HAS_ROW && listed ->
       listed = 0; HANG_UP says_aborted = 1; printf("%d: no row, so aborted\n", _pid); THEN(running) }
  :: atomic { !BROKEN(BRANCHES) && !HAS_ROW && !listed ->
       HANG_UP printf("%d: pending\n", _pid); THEN(running) }
#endif
  fi;

#ifdef LIVE
running:
  do
  EACH(RUN)
  :: !ANY(IS_PREPARED) || !(says_committed || says_aborted) -> break
  DIE
  od;
#ifdef MUTANT_ONE_SHOT
  /* It turns on the spot: Spin looks for what goes on for ever, and would not see it in what has stopped. */
  do
  :: which = 1 - which
  od;
#endif
#ifndef PURGING
  goto idle
#else
  if
  :: atomic { row == UNPROVEN -> ASK(PROVING); look = PROVING }
  :: atomic { row == PROVEN -> AGE ASK(CONFIRMING); look = CONFIRMING }
  :: else -> goto purging
  fi;
looking:
  if
  :: atomic { listed = IS_PREPARED(which); CALL(which) printf("%d: branch %d is listed: %d\n", _pid, which, listed) }
  DIE
  fi;
#endif
#endif

#ifdef PURGING
  /* ---- the evidence, second statement, with a newer snapshot ---- */
evidence:
  atomic {
    if
    :: BROKEN(which)
#ifdef MUTANT_AUDIT_ORDER
    :: !BROKEN(which) && listed -> ADD(evident[look], which)
    :: !BROKEN(which) && !listed && IS_PREPARED(which)
#else
    :: !BROKEN(which) && EVIDENT(which) ->
         ADD(evident[look], which); printf("%d: branch %d is evident\n", _pid, which)
    :: !BROKEN(which) && !EVIDENT(which) && listed
#endif
#ifdef MUTANT_42704
    :: else -> ADD(evident[look], which); printf("%d: branch %d does not exist: committed\n", _pid, which)
#else
    :: else -> ADD(missing[look], which); printf("%d: branch %d is missing\n", _pid, which)
#endif
    fi;
    listed = 0;
    HANG_UP
#ifdef LIVE
    which++;
    if
    :: which < BRANCHES -> goto looking
    :: else -> which = 0
    fi
#else
    which = 0; look = 0;
    goto idle
#endif
  }
#endif

#if defined(LIVE) && defined(PURGING)
applying:
  if
  MARK(PROVING, UNPROVEN, PROVEN)
  MARK(CONFIRMING, PROVEN, CONFIRMED)
  EACH(RECORD_PROVING)
  EACH(RECORD_CONFIRMING)
  :: else
  fi;
purging:
  if
  :: atomic { row == CONFIRMED -> SETTLE ASK(DELETING) }
  :: else -> goto auditing
  fi;
  if
  EACH(REMOVE)
  PURGE
  :: row != CONFIRMED
  fi;
auditing:
  if
  EACH(COMPARE)
  EACH(DOUBT)
  EACH(ACCUSE)
  :: else -> look = 0; goto idle
  fi
#endif
}

/* ---------------------------------------------------------------------------------------------------------- */

#if FAILOVERS > 0
/*
 * An asynchronous standby takes over: of one server, the newest transactions are lost, any number of them.
 *
 * But for one assumption, which LIMIT_LAG drops: half of `keep` (five minutes) is longer than the standby lags, so what
 * was proven for so long that it is looked at again is not lost any more (`aged`), nor is the mark of what was
 * confirmed for so long that it is being deleted (`settled`).
 */
#if defined(LIMIT_LAG) || defined(MUTANT_ONE_WAIT)
#define MAY_LOSE_MARK true
#else
#define MAY_LOSE_MARK (!settled)
#endif
#ifdef LIMIT_LAG
#define MAY_LOSE(i) true
#else
#define MAY_LOSE(i) (!aged)
#endif

#define CAN_FAIL(server) (failovers > 0 && !HAS(failed, server))
#define FAIL_OVER(i) \
  :: atomic { CAN_FAIL(i) && branch[i] == PREPARED -> \
       failovers--; failed = failed | (1 << i); branch[i] = LOST; printf("branch %d: FAILOVER, PREPARE is lost\n", i) } \
  :: atomic { CAN_FAIL(i) && branch[i] == UNDONE -> \
       failovers--; failed = failed | (1 << i); branch[i] = PREPARED; \
       printf("branch %d: FAILOVER, ROLLBACK PREPARED is lost\n", i) } \
  :: atomic { CAN_FAIL(i) && branch[i] == DONE && MAY_LOSE(i) -> \
       failovers--; failed = failed | (1 << i); \
       if \
       :: branch[i] = PREPARED; printf("branch %d: FAILOVER, COMMIT PREPARED is lost\n", i) \
       :: branch[i] = LOST; printf("branch %d: FAILOVER, PREPARE and COMMIT PREPARED are lost\n", i) \
       fi } \
  :: atomic { CAN_FAIL(i) && branch[i] == CLEAN -> \
       failovers--; failed = failed | (1 << i); branch[i] = DONE; \
       printf("branch %d: FAILOVER, the evidence is back\n", i) }

inline drop() {
  failovers--;
  failed = failed | (1 << BRANCHES);
  home = OVER;
  row = NONE;
  dropped = decided;
  if
  :: status = ENDED
  :: status = FUTURE
  fi;
  printf("home: FAILOVER, our transaction is lost, decided: %d\n", decided)
}

inline end_home() {
  failovers--;
  failed = failed | (1 << BRANCHES);
  if
  :: home == VISIBLE -> home = OVER; status = COMMITTED
  :: else
  fi
}

active proctype Failover() {
end:
  do
  :: atomic { CAN_FAIL(BRANCHES) && (home == ACTIVE || home == DURABLE) -> drop() }
  :: atomic { CAN_FAIL(BRANCHES) && (row == UNPROVEN || (row == PROVEN && !aged)) ->
       drop() }
  :: atomic { CAN_FAIL(BRANCHES) && row == PROVEN && !aged ->
       end_home(); row = UNPROVEN; printf("home: FAILOVER, the mark is lost\n") }
  :: atomic { CAN_FAIL(BRANCHES) && row == CONFIRMED && MAY_LOSE_MARK ->
       end_home(); row = PROVEN; printf("home: FAILOVER, the last mark is lost\n") }
  :: atomic { CAN_FAIL(BRANCHES) && row == NONE && purged ->
       end_home(); purged = 0;
#ifndef MUTANT_ONE_LOOK
       row = CONFIRMED;
#else
       row = PROVEN;
#endif
       printf("home: FAILOVER, the decision is back\n") }
  /*
   * Branches are interchangeable: nothing tells them apart but their number, and whoever visits them does so in any
   * order. So let those that fail over be the first ones.
   */
  FAIL_OVER(0)
#if FAILOVERS > 1
  FAIL_OVER(1)
#endif
#if FAILOVERS > 2 && BRANCHES > 2
  FAIL_OVER(2)
#endif
  od
}
#endif

/* ---------------------------------------------------------------------------------------------------------- */

/*
 * Recovery has nothing left to do: nothing is prepared or will be, and what remains of the transaction is
 * nothing, or a loss that is recorded. Then everything is committed, or everything rolled back, or it is
 * recorded that not.
 */
#define IS_UNRECORDED_EVIDENCE(i) (branch[i] == DONE && !HAS(lost_decision, i))
#define IS_ABSENT(i) (!IS_COMMITTED(i))
#define IS_UNRECORDED_ABSENT(i) (!IS_COMMITTED(i) && !HAS(lost_branch, i))
#ifndef MUTANT_ONE_LOOK
#define HAS_UNPROVEN (row == UNPROVEN || row == PROVEN)
#else
#define HAS_UNPROVEN (row == UNPROVEN)
#endif
#ifdef PURGING
#define IS_TIDY ((row == NONE && !ANY(IS_UNRECORDED_EVIDENCE)) || \
                 (HAS_UNPROVEN && ANY(IS_ABSENT) && !ANY(IS_UNRECORDED_ABSENT)))
#else
#define IS_TIDY true
#endif
#define IS_QUIET (home == OVER && !ANY(IS_SENT) && !ANY(IS_PREPARED) && IS_TIDY)
#define IS_UNIFORM ((decided && !dropped && EVERY(IS_COMMITTED)) || ((!decided || dropped) && !ANY(IS_COMMITTED)))

#ifdef LIVE
/*
 * No orphan remains once faults stop: they are finitely many, and whoever can run does, some time (pan -f). The
 * couriers can always run, so no behaviour ends, and none is missed because it does.
 */
ltl settles { <>[] IS_QUIET }
#else
active proctype Judge() {
end:
  atomic {
    IS_QUIET ->
    printf("judge: recovery has nothing left to do\n");
#if FAILOVERS > 0
    REQUIRE(IS_UNIFORM || lost_branch != 0 || lost_decision != 0, silent_loss);
#ifdef LIMIT_ACKNOWLEDGED
    REQUIRE(!acknowledged || !dropped || lost_branch != 0 || lost_decision != 0, silent_loss);
#endif
#else
    REQUIRE(IS_UNIFORM, atomicity)
#endif
  }
}
#endif

/* That things happen at all: each of these must be found reachable. The second state comes after the first. */
#if defined(WITNESS_COMMIT)
#define FIRST acknowledged
#define SECOND EVERY(IS_DONE)
#elif defined(WITNESS_RECOVERED_COMMIT)
#define FIRST (Coordinator@stop && decided && EVERY(IS_PREPARED))
#define SECOND EVERY(IS_DONE)
#elif defined(WITNESS_RECOVERED_ABORT)
#define FIRST (Coordinator@stop && !decided && EVERY(IS_PREPARED))
#define SECOND (branch[0] == UNDONE && branch[1] == UNDONE)
#elif defined(WITNESS_LATE_PREPARE)
#define FIRST (Coordinator@stop && home == OVER && branch[0] == UNDONE && branch[1] == SENT)
#define SECOND (branch[1] == UNDONE)
#elif defined(WITNESS_REUSED_XID)
#define FIRST (status == STRANGER && IS_PREPARED(0))
#define SECOND (status == COMMITTED && !decided && branch[0] == UNDONE)
#elif defined(WITNESS_CRASHES)
#define FIRST (crashes == 0)
#define SECOND (branch[0] == UNDONE)
#elif defined(WITNESS_ASKED)
#define FIRST (decided && !acknowledged && reply == NOTHING && home == OVER && EVERY(IS_PREPARED))
#define SECOND (acknowledged && EVERY(IS_DONE))
#elif defined(WITNESS_SQUATTED)
#define FIRST (SQUATTED && commit_sent)
#define SECOND (branch[0] == UNDONE && branch[1] == UNDONE)
#elif defined(WITNESS_PURGED)
#define FIRST EVERY(IS_DONE)
#define SECOND (purged && EVERY(IS_CLEAN))
#elif defined(WITNESS_LOST_BRANCH)
#define FIRST (branch[0] == LOST)
#define SECOND (lost_branch == 1)
#elif defined(WITNESS_LATE_ANSWER)
#define FIRST (row == UNPROVEN && HAS(evident[0], 0) && branch[0] == LOST)
#define SECOND (row == PROVEN && lost_branch == 1)
#elif defined(WITNESS_LOST_DECISION)
#define FIRST (dropped && IS_DONE(0))
#define SECOND (lost_decision == 1 && branch[1] == UNDONE)
#endif
#ifdef FIRST
active proctype Witness() {
end:
  FIRST;
end_witness:
  atomic { SECOND -> printf("REACHED\n"); assert(false) }
}
#endif
