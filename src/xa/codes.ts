/**
 * What `xa.h` defines: the return codes and flags of the XA interface, under the names and with the values that
 * every transaction manager knows.
 *
 * @see X/Open CAE Specification C193, Distributed Transaction Processing: The XA Specification, 1991; sections
 *   4.4 (flags) and 4.5 (return codes), appendix A (`xa.h`)
 */

/** Done. */
export const XA_OK = 0
/** The branch wrote nothing: it is committed, nothing is prepared, and it takes no further part. */
export const XA_RDONLY = 3
/** Nothing happened; call again. */
export const XA_RETRY = 4

/** Of the heuristic outcomes Postgres makes none by itself; they are here for the tables of managers. */
export const XA_HEURMIX = 5
export const XA_HEURRB = 6
export const XA_HEURCOM = 7
export const XA_HEURHAZ = 8
export const XA_NOMIGRATE = 9

/** The lowest of the codes which say that the branch is, or can only be, rolled back. */
export const XA_RBBASE = 100
/** Rolled back: a statement had failed, or the branch was ended with TMFAIL. */
export const XA_RBROLLBACK = 100
export const XA_RBCOMMFAIL = 101
/** Rolled back: a deadlock. */
export const XA_RBDEADLOCK = 102
/** Rolled back: a constraint. */
export const XA_RBINTEGRITY = 103
/** Rolled back: a reason that has no code, in the error's `detail`. */
export const XA_RBOTHER = 104
/** Rolled back: another branch is prepared under the same xid. */
export const XA_RBPROTO = 105
/** Rolled back: a timeout, of a statement or of a lock, or a cancelled statement. */
export const XA_RBTIMEOUT = 106
/** Rolled back: a serialization failure, or the server ran out of something; the same may succeed later. */
export const XA_RBTRANSIENT = 107
/** The highest of the codes of rolled back branches. */
export const XA_RBEND = 107

export const XAER_ASYNC = -2
/** What was asked for cannot be done; the branch is as it was. Never said of a prepared branch. */
export const XAER_RMERR = -3
/** No such xid. */
export const XAER_NOTA = -4
/** An argument is not what was expected. */
export const XAER_INVAL = -5
/** Not now: the branch is in another state. */
export const XAER_PROTO = -6
/** The database could not be reached or could not answer. What is prepared stays so: reconnect, ask again. */
export const XAER_RMFAIL = -7
/** This xid is taken. */
export const XAER_DUPID = -8
/** The connection is in a local transaction, outside any branch. */
export const XAER_OUTSIDE = -9

export const TMNOFLAGS = 0
/** `start`: go on with a branch that was ended. */
export const TMJOIN = 0x00200000
/** `recover`: end the scan. */
export const TMENDRSCAN = 0x00800000
/** `recover`: start a scan. */
export const TMSTARTRSCAN = 0x01000000
/** `end`: suspend. Refused. */
export const TMSUSPEND = 0x02000000
/** `end`: the work succeeded. */
export const TMSUCCESS = 0x04000000
/** `start`: resume what was suspended. Refused. */
export const TMRESUME = 0x08000000
/** `end`: the work failed; the branch can only be rolled back. */
export const TMFAIL = 0x20000000
/** `commit`: in one phase, without `prepare`. */
export const TMONEPHASE = 0x40000000
