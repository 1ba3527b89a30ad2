#!/usr/bin/env node
import { packageVersion } from '../database/migration.ts'
import { createProgram } from './program.ts'
import { run } from './run.ts'

await run(createProgram(await packageVersion()))
