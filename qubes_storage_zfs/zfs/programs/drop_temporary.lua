-- SPDX-License-Identifier: BSD-2-Clause
-- Drop what take_temporary.lua made; with a living clone it goes with that.
--
-- argv: snapshot
drop_revision(argv.snapshot)
return nil
