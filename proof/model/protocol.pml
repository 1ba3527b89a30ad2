/*
 * pgonce's commit protocol, for Spin: one global transaction, its home and its branches, the coordinator, two
 * recoverers, and everything that can go wrong with them. `npm run model` checks it; README.md maps it to the
 * code. Every atomic block is one statement as its server carries it out; between two of them anything else may
 * happen.
 *
 * Parts, by flag:
 *   BRANCHES=n      participants besides the home (2 or 3)
 *   CRASHES=n       crashes of the home's server; what else may fail is not counted, see below
 *   SQUAT           a stranger may insert a decision row under our id, with an xid of his own
 *   PURGING      recoverers prove, purge and audit
 *   FAILOVERS=n     an asynchronous standby of any server takes over and has lost the newest transactions
 *   LIVE            recoverers do everything in turn, as src/recovery/recovery.ts, for the liveness check
 *   MUTANT_…        a bug
 *   WITNESS_…       asks whether a state can be reached at all
 *   LIMIT_…         drops an assumption, to show that it is needed
 *
 * Why so little state is enough. What may happen at any time at no cost need not be remembered:
 *
 * - A lost acknowledgement. Whoever waits for an answer may go on without it, always.
 * - A coordinator or recoverer that dies. The coordinator may stop before each statement, a recoverer may begin
 *   anew. What it had sent but was not carried out yet is the same process being slow: it stops after it instead.
 * - A crash of a participant's server. It ends open sessions, which may end anyway (a branch that is not prepared
 *   may be refused at any time). PREPARE, COMMIT PREPARED and ROLLBACK PREPARED are flushed before anybody sees
 *   their effect, so nothing that was seen is lost. One that crashed between flush and effect, or that is down
 *   for a while, is one that nobody happened to ask.
 * - PREPAREs are sent back to back. A coordinator that died half way is one whose unsent PREPAREs were refused.
 * - A statement in two steps, durable and then visible, is one step where nothing can be observed in between:
 *   before it is visible it looks like not done (somebody else is "busy", and waits), and a crash then makes it
 *   visible. Only the home's COMMIT is more: there the moments "durable", "row visible" and "not in progress" are
 *   told apart, in that order. Postgres joins the last two; the protocol does not need that.
 * - The list of prepared transactions that a recovery begins with. A recoverer here tries any branch that is
 *   prepared now, which includes those that were listed then.
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

/* What a recoverer has seen of a branch: two bits each. */
#ifndef MUTANT_ONE_LOOK
#define CLEAR_SEEN seen = 0; second = 0
#else
#define CLEAR_SEEN seen = 0
#endif
#define UNSEEN  0
#define EVIDENCE 1
#define MISSING 2 /* not prepared, then no evidence */
#define WAITING 3 /* prepared */
#define SEEN(i) ((seen >> (2 * (i))) & 3)
#define IS_UNSEEN(i) (SEEN(i) == UNSEEN)
#define IS_SEEN(i) (SEEN(i) != UNSEEN)
#define IS_EVIDENT(i) (SEEN(i) == EVIDENCE)
#define IS_MISSING(i) (SEEN(i) == MISSING)


/*
 * A recoverer: finishes, proves, purges, audits, in any order, with whatever it finds, and may die before each
 * statement. What it finds in a batch is found for each transaction on its own, so one transaction is enough.
 *
 * With LIVE it does all in turn and dies only at the cost of a crash: the liveness check needs that somebody who
 * runs gets on with it.
 */
#ifdef LIVE
#define DIE crashes > 0 -> crashes--
#define NEXT(label) goto label
#else
#define DIE true
#define NEXT(label) goto idle
#endif

#if BRANCHES > 2
#define EACH(option) option(0) option(1) option(2)
#else
#define EACH(option) option(0) option(1)
#endif

#define RECORD_MISSING(i) \
  if \
  :: IS_MISSING(i) -> \
       lost_branch = lost_branch | (1 << i); printf("%d: records a lost branch, %d\n", _pid, i); \
       REQUIRE(!IS_COMMITTED(i) || HAS_FAILED(i), false_alarm) \
  :: else \
  fi;

/* lookForBranches, first statement: the list of prepared transactions. */
#define LOOK(i) \
  :: atomic { IS_UNSEEN(i) -> which = i; listed = IS_PREPARED(i); CALL(i) \
       printf("%d: branch %d is prepared: %d\n", _pid, i, listed); goto evidence }
#define LOOK_WRONG(i) \
  :: atomic { IS_UNSEEN(i) -> which = i; listed = EVIDENT(i); \
       printf("%d: branch %d is evident: %d\n", _pid, i, listed); goto evidence }

#define DELETE(i) \
  :: atomic { IS_UNSEEN(i) -> \
       seen = seen | (EVIDENCE << (2 * i)); \
       if \
       :: branch[i] == DONE -> branch[i] = CLEAN; SOFT_DELETE(i) \
       :: else \
       fi; \
       printf("%d: deletes the evidence of branch %d\n", _pid, i); \
       REQUIRE(row != UNPROVEN || FAILED_OVER, premature) }
#ifdef MUTANT_ASYNC_DELETE
#define SOFT_DELETE(i) soft = soft | (1 << i)
#else
#define SOFT_DELETE(i) skip
#endif

/* audit() reads them all; in turn, one that it has recorded would keep it from the next. */
#ifdef LIVE
#define IS_NEWS(i) (!HAS(lost_decision, i))
#else
#define IS_NEWS(i) true
#endif
#define AUDIT(i) \
  :: atomic { EVIDENT(i) && IS_NEWS(i) -> which = i; printf("%d: evidence of branch %d\n", _pid, i); goto audit_row }

active [2] proctype Recoverer() {
  byte seen;
  byte which;
  bit listed;
  REMEMBER
#ifndef MUTANT_ONE_LOOK
  bit second;
#endif

idle:
end:
#ifdef LIVE
  goto finishing;
#else
  if
  :: goto finishing
#ifdef PURGING
  :: atomic { row == UNPROVEN -> printf("%d: reads an unproven decision\n", _pid); goto prove }
#ifndef MUTANT_ONE_LOOK
  :: atomic { row == PROVEN -> AGE second = 1; printf("%d: reads a proven decision\n", _pid); goto prove }
  :: atomic { row == CONFIRMED -> SETTLE printf("%d: reads a confirmed decision\n", _pid); goto purge }
#else
  :: atomic { row == PROVEN -> AGE printf("%d: reads a proven decision\n", _pid); goto purge }
#endif
  EACH(AUDIT)
#endif
  fi;
#endif

  /* ---- once.branch_outcome: status, then row ---- */
finishing:
  if
#if defined(MUTANT_BY_AGE)
  :: atomic { ANY(IS_PREPARED) -> printf("%d: old enough, rolls back\n", _pid); goto rollback }
  :: atomic { !ANY(IS_PREPARED) && HAS_ROW -> goto commit }
  :: atomic { !ANY(IS_PREPARED) && !HAS_ROW -> goto idle }
#elif defined(MUTANT_ROW_FIRST)
  :: atomic { HAS_ROW -> printf("%d: row\n", _pid); goto commit }
  :: atomic { !HAS_ROW -> printf("%d: no row\n", _pid) }
#elif defined(MUTANT_STATUS)
  :: atomic { IS_OVER && status == COMMITTED -> printf("%d: the status is committed\n", _pid); goto commit }
  :: atomic { !IS_OVER || status != COMMITTED -> listed = IS_OVER; printf("%d: over: %d\n", _pid, listed) }
#elif defined(MUTANT_STANDBY)
  :: atomic { true -> listed = IS_OVER; printf("%d: over: %d\n", _pid, listed) }
  :: atomic { !replicated -> printf("%d: the standby knows neither xid nor row\n", _pid); goto rollback }
#else
  :: atomic { listed = IS_OVER; CALL(BRANCHES) printf("%d: over: %d\n", _pid, listed) }
#endif
  fi;
  if
#if defined(MUTANT_ROW_FIRST)
  :: atomic { IS_OVER -> printf("%d: over\n", _pid); goto rollback }
  :: atomic { !IS_OVER -> NEXT(proving) }
#elif defined(MUTANT_PENDING)
  :: atomic { HAS_ROW -> listed = 0; printf("%d: row\n", _pid); goto commit }
  :: atomic { !HAS_ROW -> listed = 0; printf("%d: no row\n", _pid); goto rollback }
#else
  :: atomic { BROKEN(BRANCHES) -> listed = 0; HANG_UP NEXT(proving) }
  :: atomic { !BROKEN(BRANCHES) && HAS_ROW ->
       listed = 0; HANG_UP printf("%d: row, so committed\n", _pid); goto commit }
  :: atomic { !BROKEN(BRANCHES) && !HAS_ROW && listed ->
       listed = 0; HANG_UP printf("%d: no row, so aborted\n", _pid); goto rollback }
  :: atomic { !BROKEN(BRANCHES) && !HAS_ROW && !listed ->
       HANG_UP printf("%d: pending\n", _pid); NEXT(proving) }
#endif
  fi;

  /* An answer never changes, so it may be carried out however late. */
commit:
  do
  FINISH_EACH(commit_prepared)
#ifdef LIVE
  :: !ANY(IS_PREPARED) -> NEXT(proving)
#endif
  :: atomic { DIE; goto idle }
  od;
rollback:
  do
  FINISH_EACH(rollback_prepared)
#ifdef LIVE
  :: !ANY(IS_PREPARED) -> NEXT(proving)
#endif
  :: atomic { DIE; goto idle }
  od;

proving:
#ifdef MUTANT_ONE_SHOT
  /* It turns on the spot: Spin looks for what goes on for ever, and would not see it in what has stopped. */
  do
  :: which = 1 - which
  od;
#endif
#ifndef PURGING
  goto idle
#else
#ifdef LIVE
  if
  :: atomic { row == UNPROVEN -> printf("%d: reads an unproven decision\n", _pid); goto prove }
#ifndef MUTANT_ONE_LOOK
  :: atomic { row == PROVEN -> AGE second = 1; printf("%d: reads a proven decision\n", _pid); goto prove }
#endif
  :: else -> goto purging
  fi;
#endif

  /* ---- prove() ---- */
prove:
  do
#ifdef MUTANT_PURGE_EARLY
  :: atomic { row == UNPROVEN -> CLEAR_SEEN; row = PROVEN; printf("%d: marks proven, unseen\n", _pid);
       REQUIRE(EVERY(IS_COMMITTED), premature); NEXT(purging) }
#endif
#ifdef MUTANT_AUDIT_ORDER
  EACH(LOOK_WRONG)
#else
  EACH(LOOK)
#endif
  :: atomic { EVERY(IS_EVIDENT) ->
       /* once.mark_proven, once.mark_confirmed */
       if
       :: row == UNPROVEN ->
            row = PROVEN; printf("%d: marks the decision proven\n", _pid);
#ifdef MUTANT_ASYNC_MARK
            soft = 1;
#endif
            REQUIRE(EVERY(IS_COMMITTED) || FAILED_OVER, premature)
#ifndef MUTANT_ONE_LOOK
       :: row == PROVEN && second ->
            row = CONFIRMED; printf("%d: marks the decision confirmed\n", _pid);
#ifdef MUTANT_ASYNC_MARK
            soft = 1;
#endif
            REQUIRE(EVERY(IS_COMMITTED) || FAILED_OVER, premature)
#endif
       :: else
       fi;
       CLEAR_SEEN;
       NEXT(purging) }
  :: atomic { EVERY(IS_SEEN) && !EVERY(IS_EVIDENT) ->
       /* once.find_decisions: still unproven? */
       if
#if defined(MUTANT_NO_RECHECK)
       :: true ->
#elif !defined(MUTANT_ONE_LOOK)
       :: row == UNPROVEN || row == PROVEN ->
#else
       :: row == UNPROVEN ->
#endif
            EACH(RECORD_MISSING)
            skip
       :: else
       fi;
       CLEAR_SEEN; NEXT(purging) }
#ifndef LIVE
  :: atomic { CLEAR_SEEN; goto idle }
#else
  :: atomic { crashes > 0 -> crashes--; CLEAR_SEEN; goto idle }
#endif
  od;
  /* lookForBranches, second statement, with a newer snapshot: evidence. */
evidence:
  atomic {
    if
    :: BROKEN(which) -> seen = seen | (WAITING << (2 * which))
#ifdef MUTANT_AUDIT_ORDER
    :: !BROKEN(which) && listed -> seen = seen | (EVIDENCE << (2 * which))
    :: !BROKEN(which) && !listed && IS_PREPARED(which) -> seen = seen | (WAITING << (2 * which))
#else
    :: !BROKEN(which) && EVIDENT(which) ->
         seen = seen | (EVIDENCE << (2 * which)); printf("%d: branch %d is evident\n", _pid, which)
    :: !BROKEN(which) && !EVIDENT(which) && listed -> seen = seen | (WAITING << (2 * which))
#endif
#ifdef MUTANT_42704
    :: else ->
         seen = seen | (EVIDENCE << (2 * which)); printf("%d: branch %d does not exist: committed\n", _pid, which)
#else
    :: else -> seen = seen | (MISSING << (2 * which)); printf("%d: branch %d is missing\n", _pid, which)
#endif
    fi;
    which = 0; listed = 0; HANG_UP
    goto prove
  }

  /* ---- purge() ---- */
#ifdef LIVE
purging:
  if
#ifndef MUTANT_ONE_LOOK
  :: atomic { row == CONFIRMED -> SETTLE printf("%d: reads a confirmed decision\n", _pid); goto purge }
#else
  :: atomic { row == PROVEN -> AGE printf("%d: reads a proven decision\n", _pid); goto purge }
#endif
  :: else -> goto auditing
  fi;
#endif
purge:
  do
#ifdef MUTANT_PURGE_ORDER
  :: atomic { row == CONFIRMED -> row = NONE; purged = 1; printf("%d: deletes the decision\n", _pid) }
#endif
  EACH(DELETE)
  :: atomic { EVERY(IS_SEEN) ->
       /* once.purge: unproven rows are never touched */
       CLEAR_SEEN;
       if
       :: row == PROVEN || row == CONFIRMED ->
            row = NONE; purged = 1; printf("%d: deletes the decision\n", _pid);
            REQUIRE(EVERY(IS_CLEAN) || FAILED_OVER, premature)
       :: else
       fi;
       NEXT(auditing) }
#ifndef LIVE
  :: atomic { CLEAR_SEEN; goto idle }
#else
  :: atomic { crashes > 0 -> crashes--; CLEAR_SEEN; goto idle }
#endif
  od;

  /* ---- audit(): evidence, then no row, then still evidence ---- */
#ifdef LIVE
auditing:
  if
  EACH(AUDIT)
  :: else -> goto idle
  fi;
#endif
audit_row:
  if
  :: atomic { row != NONE -> which = 0; goto idle }
  :: atomic { row == NONE -> printf("%d: no decision\n", _pid) }
  fi;
  atomic {
    if
#ifdef MUTANT_NO_RECHECK_EVIDENCE
    :: true ->
#else
    :: EVIDENT(which) ->
#endif
         lost_decision = lost_decision | (1 << which); printf("%d: records a lost decision, branch %d\n", _pid, which);
         REQUIRE(FAILED_OVER, false_alarm)
    :: else
    fi;
    which = 0;
    goto idle
  }
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
 * recoverers can always run, so no behaviour ends, and none is missed because it does.
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
#elif defined(WITNESS_LOST_DECISION)
#define FIRST (dropped && IS_DONE(0))
#define SECOND (lost_decision == 1 && branch[1] == UNDONE)
#endif
#ifdef FIRST
active proctype Witness() {
end:
  FIRST;
  atomic { SECOND -> printf("REACHED\n"); assert(false) }
}
#endif
