/** reset-image.mjs DIRECTORY: what both sides of reset boot: a guest that has come up stays so. */
import { writeInitImage } from './init-image.mjs'

await writeInitImage(process.argv[2], 'read -r line')
